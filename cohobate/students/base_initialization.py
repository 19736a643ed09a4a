"""The params and steps that all kinds of initial students share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from cohobate.errors import UserError
from cohobate.models import hub
from cohobate.models.number_formats import NumberFormat
from cohobate.params import Section
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class PinnedModels(NamedTuple):
    """The models that preflight has pinned: the sections of its models.json."""

    teachers: Mapping[str, Any]
    student: Mapping[str, Any]


class Initialization(Section):
    """The params that all kinds share."""

    teacher: str = "main"
    """Key of the teacher whose layers, tokenizer or configuration are taken."""
    of: Literal["data/preflight"] = "data/preflight"
    """The source, as a dependency in dvc.yaml: the models as they were fetched."""
    save_precision: NumberFormat = "float32"
    """Number format of the weights on disk."""
    vocabulary: Literal["whole", "used"] = "whole"
    """used: only the tokens that occur in `rows`, with the added ones and every byte."""
    rows: str = Field("data/preflight", pattern=r"^data/[a-z0-9-]+(/[a-z0-9._-]+\.jsonl)?$")
    """The rows that decide what is kept, such as data/filter/kept.jsonl for a vocabulary and
    data/collect/labelled.jsonl for importance; data/preflight where none are needed."""

    @model_validator(mode="after")
    def _rows_where_needed(self) -> "Initialization":
        if self.needs_rows and not self.rows.endswith(".jsonl"):
            raise ValueError("this student needs rows, such as rows: data/collect/labelled.jsonl")
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether the student depends on rows."""
        return self.vocabulary == "used"

    def trim_vocabulary(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
    ) -> "PreTrainedTokenizerBase":
        """Trim the model's vocabulary as the params say; return its tokenizer."""
        if self.vocabulary == "whole":
            return tokenizer
        from cohobate.data.records import read_rows, row_kind
        from cohobate.students.vocabulary_trimming import trim

        return trim(model, tokenizer, read_rows(Path(self.rows), row_kind(Path(self.rows))))

    def teacher_of(self, teachers: Mapping[str, Teacher]) -> Teacher:
        """Return the teacher by its key.

        Raises:
            UserError: no teacher has this key, or its weights are needed and it has none.
        """
        if self.teacher not in teachers:
            raise UserError(
                f"{self.teacher!r} is none of the teachers: {', '.join(sorted(teachers))}",
                where="params.yaml, init_student.teacher",
            )
        teacher = teachers[self.teacher]
        if teacher.endpoint and self.needs_teacher:
            raise UserError(
                f"the teacher {self.teacher} is behind an endpoint: its weights are not available",
                where="params.yaml, section init_student",
                fix="cohobate run --set 'init_student={type: pretrained, model: ...}'",
            )
        return teacher

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's checkpoint is needed."""
        return True

    def preview_tokenizer(self, teachers: Mapping[str, Teacher]) -> "PreTrainedTokenizerBase":
        """Return the tokenizer that the student will have, before its vocabulary is trimmed."""
        teacher = self.teacher_of(teachers)
        return teacher.load_tokenizer(hub.resolve(teacher.model, teacher.revision))
