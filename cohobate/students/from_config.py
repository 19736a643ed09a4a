"""The size of a model that is cut, from its configuration alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.experts import dense
from cohobate.students.layer_cutting import keep_layers
from cohobate.students.rank_cutting import cut_hidden_size
from cohobate.students.width_cutting import keep_any


def parameters_after_cut(
    folder: Path,
    positions: Sequence[int],
    widths: tuple[int, int] | None = None,
    rank: int | None = None,
    *,
    one_expert: bool = False,
) -> int:
    """Return the number of parameters that a model has after a cut; no weight is read.

    Args:
        folder: the model to be cut.
        positions: layers to keep.
        widths: groups of heads and neurons that each layer keeps.
        rank: directions of the hidden states that are kept.
        one_expert: whether each layer's experts become one MLP.

    Raises:
        UserError: it would be no model of its kind: its configuration cannot say what is left of
            it, or its blocks are of an unknown kind.
    """
    model = _empty(AutoConfig.from_pretrained(folder, local_files_only=True))
    if one_expert:
        model = dense(model, "mean")
    keep_layers(model, positions)
    if widths:
        keep_any(model, *widths)
    if rank:
        cut_hidden_size(model, rank)
    # the cut model must be what its configuration makes: else it could not be loaded again
    cut = {name: weight.shape for name, weight in model.state_dict().items()}
    try:
        made = {name: w.shape for name, w in _empty(model.config).state_dict().items()}
    except Exception:  # each architecture checks its configuration in its own way
        made = {}
    if cut != made:
        raise UserError(
            f"{type(model).__name__} is no model of its kind once it is cut so: its configuration "
            "cannot say what is left of it",
            where="params.yaml, section init_student.width"
            if widths
            else f"params.yaml, init_student.{'rank' if rank else 'layers'}",
            fix="cut by layers alone"
            if widths or rank
            else "init_student={type: pretrained, model: ...}",
        )
    return int(model.num_parameters())


def _empty(config: Any) -> PreTrainedModel:
    """Return a model of a configuration, without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model
