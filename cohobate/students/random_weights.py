"""Models with random weights: of a configuration, with other sizes, or as another model is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from cohobate.errors import UserError


def random_model(
    folder: Path, sizes: Mapping[str, int], seed: int, device: str = "cpu"
) -> PreTrainedModel:
    """Return a causal LM of the architecture in `folder` with other sizes and random weights.

    Raises:
        UserError: the configuration has no such size, or the sizes do not fit each other.
    """
    return _random(AutoModelForCausalLM, folder, sizes, seed, device)


def random_like(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Return a model of the same class and sizes with random weights."""
    # the caller's random numbers stay as they are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = type(model)._from_config(model.config, dtype=torch.float32).eval()
    drawn.generation_config = model.generation_config
    return drawn


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
