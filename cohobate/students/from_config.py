"""Models made from a configuration: the size of a cut model, and a model with random weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cohobate.errors import UserError
from cohobate.students.layer_cutting import keep_layers
from cohobate.students.width_cutting import keep_any


def parameters_after_cut(
    folder: Path, positions: Sequence[int], widths: tuple[int, int] | None = None
) -> int:
    """Return the number of parameters that a model has after a cut; no weight is read.

    Args:
        folder: the model to be cut.
        positions: layers to keep.
        widths: groups of heads and neurons that each layer keeps.

    Raises:
        UserError: it would be no model of its kind: its configuration cannot say what is left of
            it, or its blocks are of an unknown kind.
    """
    model = _empty(AutoConfig.from_pretrained(folder, local_files_only=True))
    keep_layers(model, positions)
    if widths:
        keep_any(model, *widths)
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
            else "params.yaml, init_student.layers",
            fix="cut by layers alone" if widths else "init_student={type: pretrained, model: ...}",
        )
    return int(model.num_parameters())


def _empty(config: Any) -> PreTrainedModel:
    """Return a model of a configuration, without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def random_model(
    folder: Path, sizes: Mapping[str, int], seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """Return a causal LM of the architecture in `folder` with other sizes and random weights.

    Raises:
        UserError: the configuration has no such size, or the sizes do not fit each other.
    """
    return _random(AutoModelForCausalLM, folder, sizes, seed, device)


def random_masked_model(
    folder: Path, sizes: Mapping[str, int], seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """Return a masked model of the architecture in `folder`, as `random_model` does."""
    from transformers import AutoModelForMaskedLM

    return _random(AutoModelForMaskedLM, folder, sizes, seed, device)


def _random(
    auto: Any, folder: Path, sizes: Mapping[str, int], seed: int, device: str
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    fields = config.to_dict()
    sizes = {config.attribute_map.get(name, name): value for name, value in sizes.items()}
    if unknown := sorted(set(sizes) - set(fields)):
        raise UserError(
            f"the model's configuration has no {', '.join(unknown)}",
            where="params.yaml, section init_student",
        )
    derived = {"layer_types", "head_dim"} - set(sizes)  # from the sizes, unless they were given
    kept = {name: value for name, value in fields.items() if name not in derived}
    try:
        # the caller's random numbers stay as they are
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            smaller = type(config).from_dict({**kept, **sizes})
            model: PreTrainedModel = auto.from_config(smaller, dtype=torch.float32).eval()
            return model
    except Exception as error:  # each architecture checks its sizes in its own way
        raise UserError(
            f"the sizes do not fit each other: {error}", where="params.yaml, section init_student"
        ) from error
