"""Cutting a model down to some of its layers, and drawing a smaller one of the same kind."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.layers import body_of


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of transformer blocks, whatever the architecture calls it.

    Raises:
        UserError: the model is not one stack of blocks.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in body_of(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise UserError(
        f"{type(model).__name__} is not one stack of {depth} layers",
        where="params.yaml, section init_student",
    )


def keep_layers(model: PreTrainedModel, positions: Sequence[int]) -> None:
    """Keep the blocks at `positions`, in that order, and fix the configuration."""
    stack, config = layers_of(model), model.config.get_text_config()
    depth = len(stack)
    kept = [stack[n] for n in positions]
    del stack[:]
    stack.extend(kept)
    for index, block in enumerate(kept):
        for module in block.modules():
            for name in ("layer_idx", "layer_id"):  # where its keys and values lie in the cache
                if hasattr(module, name):
                    vars(module)[name] = index
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # one entry a layer: layer_types ...
            setattr(config, name, [value[n] for n in positions])
    if hasattr(config, "attention_types"):  # GPT-Neo spells its list of layers so too
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    config.num_hidden_layers = len(kept)


def parameters_of_cut(
    folder: Path, positions: Sequence[int], widths: tuple[int, int] | None = None
) -> int:
    """Return how many weights a model has when it is cut; no weight is read.

    Args:
        folder: the whole model.
        positions: layers to keep.
        widths: groups of heads and neurons that each layer keeps.

    Raises:
        UserError: it would be no model of its kind: its configuration cannot say what is left of
            it, or its blocks are not known.
    """
    model = _empty(AutoConfig.from_pretrained(folder, local_files_only=True))
    keep_layers(model, positions)
    if widths:
        from cohobate.students.width_cutting import keep_first

        keep_first(model, *widths)
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


def random_like(
    folder: Path, sizes: Mapping[str, int], seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """Draw a model of the architecture in `folder`, of other sizes.

    Raises:
        UserError: the configuration has no such size, or the sizes do not fit each other.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    told = config.to_dict()
    sizes = {config.attribute_map.get(name, name): value for name, value in sizes.items()}
    if unknown := sorted(set(sizes) - set(told)):
        raise UserError(
            f"the model's configuration has no {', '.join(unknown)}",
            where="params.yaml, section init_student",
        )
    derived = {"layer_types", "head_dim"} - set(sizes)  # from the sizes, unless they were given
    outline = {name: value for name, value in told.items() if name not in derived}
    try:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            torch.manual_seed(seed)
            smaller = type(config).from_dict({**outline, **sizes})
            return AutoModelForCausalLM.from_config(smaller, dtype=torch.float32).eval()
    except Exception as error:  # each architecture checks its sizes in its own way
        raise UserError(
            f"the sizes do not fit each other: {error}", where="params.yaml, section init_student"
        ) from error
