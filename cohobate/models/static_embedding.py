"""Static embedders: a table of token vectors, whose mean is the vector of a text.

As model2vec has them (Tulkens & van Dongen 2024). There is no layer and no attention: a text costs
one look-up a token. The folder of a checkpoint opens by StaticEmbedding of sentence-transformers
too: its table is `embedding.weight` of model.safetensors, its tokenizer tokenizer.json.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

SIF = 1e-4
"""Smoothing of the weights of frequent tokens (Arora, Liang & Ma 2017), as in model2vec."""


class StaticConfig(PreTrainedConfig):
    """Sizes of a static embedder, under the names that all architectures share."""

    model_type = "static_embedding"
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 1


class StaticModel(PreTrainedModel):
    """A table of token vectors as a model of transformers: its hidden states are the vectors."""

    config_class = StaticConfig
    _supports_sdpa = True  # it has no attention that could differ

    def __init__(self, config: StaticConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList()  # a stack of no blocks
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the table."""
        return self.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """Return the vectors of the tokens, (B, S, D), as the last hidden state."""
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))


def static_model(vectors_VD: Tensor) -> StaticModel:
    """Return the static embedder of a table of token vectors."""
    vocabulary, width = vectors_VD.shape
    config = StaticConfig(vocab_size=vocabulary, hidden_size=width)
    config.architectures = ["StaticModel"]
    model = StaticModel(config)
    with torch.no_grad():
        model.embedding.weight.copy_(vectors_VD)
    model.eval()
    return model


def principal_components(vectors_VD: Tensor, width: int) -> Tensor:
    """Return the first principal components of vectors, (V, width).

    The sign of each is that by which its largest weight is positive: the same on every machine.
    """
    centred_VD = vectors_VD.double() - vectors_VD.double().mean(0)
    _, directions_DD = torch.linalg.eigh(centred_VD.T @ centred_VD)  # ascending
    chosen_DW = directions_DD.flip(-1)[:, :width]
    largest_W = chosen_DW.abs().argmax(0)
    signs_W = chosen_DW.gather(0, largest_W[None]).sign()[0]
    components_VW: Tensor = (centred_VD @ (chosen_DW * signs_W)).float()
    return components_VW


def frequency_weights(vocabulary: int) -> Tensor:
    """Return a weight for each token by its place in the vocabulary, (V,): rare ones weigh more.

    Vocabularies list frequent tokens first; by Zipf's law a token's share is 1 / rank.
    """
    inverse_V = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
    share_V = inverse_V / inverse_V.sum()
    return (SIF / (SIF + share_V)).float()


def register() -> None:
    """Let transformers' AutoModel open a static embedder."""
    AutoConfig.register(StaticConfig.model_type, StaticConfig, exist_ok=True)
    AutoModel.register(StaticConfig, StaticModel, exist_ok=True)
