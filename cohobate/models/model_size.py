"""Sizes of a model, from its configuration alone: no weights are loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cohobate.errors import UserError


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide how much memory and time it takes."""

    parameters: int
    embeddings: int
    """Weights in embeddings and head."""
    layers: int
    width: int
    neurons: int
    """Of the MLP of a layer."""
    heads: int
    vocabulary: int
    keys: int = 0
    """Width of the keys of a layer, all heads that share none together."""
    queries: int = 0
    """Width of the queries of a layer, all heads together; `width` where it is 0."""
    generates: bool = True
    """Whether it is a causal LM; else an encoder with a head over labels, not over a vocabulary."""

    @classmethod
    def of(
        cls, config: Mapping[str, Any], parameters: int, embeddings: int, layers: int
    ) -> "ModelSize":
        """Return the size of a model from its configuration."""
        width = int(config["hidden_size"])
        heads = int(config.get("num_attention_heads") or 1)
        of_head = int(config.get("head_dim") or width // heads)
        return cls(
            parameters,
            embeddings,
            layers,
            width,
            int(config.get("intermediate_size") or 4 * width),
            heads,
            int(config["vocab_size"]),
            # grouped-query attention: fewer heads of keys than of queries, of the same width
            of_head * int(config.get("num_key_value_heads") or heads),
            of_head * heads,
        )

    @property
    def body(self) -> int:
        """Weights that are in neither embeddings nor head."""
        return self.parameters - self.embeddings

    @property
    def block(self) -> int:
        """Weights of a layer."""
        return self.body // max(1, self.layers)

    @property
    def head(self) -> int:
        """Weights of the head over the vocabulary; of a classifier none."""
        return self.vocabulary * self.width if self.generates else 0

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix; of a classifier, that there is no second."""
        return not self.generates or self.embeddings < 2 * self.head

    def with_experts(self, experts: int) -> "ModelSize":
        """Return the same model with so many copies of each layer's MLP, and routers."""
        of_mlp, of_router = 3 * self.width * self.neurons, experts * self.width
        added = self.layers * ((experts - 1) * of_mlp + of_router)
        return replace(self, parameters=self.parameters + added)

    def with_layers(self, layers: int) -> "ModelSize":
        """Return the same model with so many of its layers."""
        # all layers are of one size
        body = self.body * layers // max(1, self.layers)
        return replace(self, parameters=self.embeddings + body, layers=layers)


def size_of_model(model: Any) -> ModelSize:
    """Return the size of a model of transformers."""
    from cohobate.models.layers import shared_names

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    counts = {id(end.weight): end.weight.numel() for end in ends if end is not None}
    config = shared_names(model.config.get_text_config())
    layers = int(config["num_hidden_layers"])
    size = ModelSize.of(config, model.num_parameters(), sum(counts.values()), layers)
    return replace(size, generates=bool(model.can_generate()))


def size_of_config(path: Path) -> ModelSize:
    """Return the size of the model that a config.json describes: no weights are needed.

    Args:
        path: a config.json, or a folder that has one.

    Raises:
        UserError: there is none, or transformers builds no causal LM from it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_bytes())
        config = AutoConfig.for_model(**fields)
        # tensors without memory: only their shapes are made
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each architecture checks its sizes in its own way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"no causal language model can be made from this configuration: {reason}",
            where=str(file),
            fix="give the config.json of a model that transformers knows",
        ) from error
    return size_of_model(model)
