"""Sizes of the models of a round that has not run: by configurations that are here already."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cohobate.models import hub
from cohobate.models.model_size import ModelSize

_PACKAGED: dict[str, dict[str, Any]] = {  # config.json, before it is fetched
    hub.PACKAGED: {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "all-minilm-l6-v2": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "vocab_size": 30522,
        "tie_word_embeddings": True,
    },
}


class UnknownModelError(Exception):
    """A model is not here yet."""


def config_of(model: str, root: Path) -> Mapping[str, Any]:
    """Return a model's configuration, of small files that are here; nothing is fetched.

    Raises:
        UnknownModelError: it is not here.
    """
    path = (root / Path(model).expanduser()) / "config.json"
    if path.is_file():
        config: dict[str, Any] = json.loads(path.read_text())
        text: dict[str, Any] = config.get("text_config", config)
        return text
    return packaged_config(model)


def packaged_config(model: str) -> Mapping[str, Any]:
    """Return the configuration of a model that comes from PyPI, fetched or not.

    Raises:
        UnknownModelError: it is none of these.
    """
    if model not in _PACKAGED:
        raise UnknownModelError
    return _PACKAGED[model]


def size_of(config: Mapping[str, Any]) -> ModelSize:
    """Return the size of a model like Llama, by its configuration."""
    try:
        size = ModelSize.of(config, 0, 0, int(config["num_hidden_layers"]))
    except (KeyError, ValueError) as error:
        raise UnknownModelError from error
    embeddings = size.vocabulary * size.width * (1 if config.get("tie_word_embeddings") else 2)
    # q and o of width × width, k and v of width × keys; gate, up and down of the MLP
    layer = 2 * size.width * (size.width + size.keys) + 3 * size.width * size.neurons
    fields = {"embeddings": embeddings, "parameters": embeddings + size.layers * layer}
    return ModelSize(**(vars(size) | fields))


def depth(layers: Any) -> int:
    """Return how many layers `init_student.layers` keeps: named ones, evenly spaced ones, a
    number."""
    if isinstance(layers, int):
        return layers
    return math.prod(layers.values()) if isinstance(layers, Mapping) else len(layers)


def body(size: ModelSize) -> int:
    """Return the weights of the layers."""
    return size.parameters - size.embeddings


def head(size: ModelSize) -> int:
    """Return the weights of the head."""
    return size.vocabulary * size.width
