"""Tuning of a teacher to the task before distillation, one class for each kind.

To add a kind: a class with `publish`, and its name in `Tuning` at the bottom.
"""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.backends.answer_backend import LOADED, AnswerBackend
from cohobate.data.records import LABELLED, Row, read_rows
from cohobate.errors import UserError
from cohobate.methods.encoder_tuning import publish_classifier, publish_masked
from cohobate.models import checkpoints, embedders
from cohobate.models.chat_templates import PLAIN, default_template
from cohobate.models.number_formats import NumberFormat, Precision
from cohobate.models.upcycling import Upcycling
from cohobate.params import Section, validated
from cohobate.scoring.verifiers import Task
from cohobate.teachers.teacher import Teacher, tuning_settings
from cohobate.training import checkpointing
from cohobate.training.hyperparameters import Hyperparameters


class NoTuning(Section):
    """The teacher is used as it is."""

    type: Literal["none"]
    dev_rows: int = Field(500, ge=0)
    """Most dev rows on which the published teacher's answers are scored, for information."""
    dev_backend: AnswerBackend = Field(LOADED, exclude_if=lambda backend: backend == LOADED)
    """What generates these answers: the loaded model, or `{type: vllm}`, for a teacher that is
    larger than a GPU."""
    precision: Precision = "auto"
    """Number format in which it generates these answers."""
    threads: int = Field(2, ge=1)
    """CPU threads, for these answers."""

    def publish(
        self,
        source: Path,
        teacher: Teacher,
        folder: Path,
        provenance: dict[str, Any],
        *,
        label: str,
        task: Task | None = None,
    ) -> int:
        """Copy the model; return the number of rows it was trained on: none.

        Raises:
            UserError: a teacher of kind classifier has no labels.
        """
        if teacher.kind == "masked":
            return publish_masked(source, folder, provenance, task)
        if teacher.kind == "classifier" and not checkpoints.is_classifier(source):
            raise UserError(
                "the teacher is an encoder without labels: it is no classifier yet",
                where="params.yaml, adapt.type",
                fix="adapt: {type: sft, ...} tunes it on the labelled rows",
            )
        template, config = None, None
        if teacher.template != PLAIN:
            template = default_template(teacher.load_tokenizer(source))
        if teacher.kind == "embedder":
            where = "params.yaml, pooling of a teacher"
            facts = embedders.pooling_of(teacher.model, source, teacher.pooling, where)
            config = {checkpoints.SENTENCE_EMBEDDING: facts}
        checkpoints.copy(source, folder, provenance, template, config)
        return 0


class SftTuning(Hyperparameters):
    """Supervised fine-tuning on the labelled rows."""

    type: Literal["sft"]
    upcycle: Upcycling | None = Field(None, exclude_if=lambda experts: experts is None)
    """Make the teacher a mixture of experts before it is tuned, such as `{experts: 4, per_token:
    2}`: a Llama or a Mistral becomes a Mixtral. Not when not given."""
    rows: int | None = Field(None, ge=1)
    """Train on so many labelled rows, the first of the list; all when not given."""
    seed: int = 0
    """Of the order of rows, and of dropout."""
    save_precision: NumberFormat = "bfloat16"
    """Number format of the weights on disk."""
    dev_rows: int = Field(500, ge=0)
    """Most dev rows on which the published teacher's answers are scored, for information."""
    dev_backend: AnswerBackend = Field(LOADED, exclude_if=lambda backend: backend == LOADED)
    """What generates these answers: the loaded model, or `{type: vllm}`."""

    @model_validator(mode="after")
    def _is_published_whole(self) -> "SftTuning":
        if self.adapter.type == "lora" and self.adapter.save_adapter:
            raise ValueError("adapt publishes one merged teacher: leave out save_adapter")
        if self.adapter.type == "lora" and self.upcycle:
            raise ValueError("experts are no linear layers: adapter: {type: full} with upcycle")
        return self

    def publish(
        self,
        source: Path,
        teacher: Teacher,
        folder: Path,
        provenance: dict[str, Any],
        *,
        label: str,
        task: Task | None = None,
    ) -> int:
        """Tune the model and publish it; return the number of rows it was trained on.

        Raises:
            UserError: no row, all too long, a loss that is not finite, or no way to upcycle.
        """
        self._check_kind(teacher)
        if teacher.kind == "masked":
            return publish_masked(source, folder, provenance, task)
        if teacher.kind == "classifier":
            assert task is not None, "the labels are compared by the task's verifier"
            return publish_classifier(
                source,
                folder,
                provenance,
                self,
                task,
                most_rows=self.rows,
                seed=self.seed,
                precision=self.save_precision,
            )
        from cohobate.data.examples import examples_of
        from cohobate.data.row_length import LengthLimit
        from cohobate.data.tokenized import encode_all
        from cohobate.losses.divergences import Hard
        from cohobate.training.trainer import fit

        # as it will read them
        rows = [row.for_teacher() for row in islice(read_rows(LABELLED, Row), self.rows)]
        if not rows:
            raise UserError(
                "no labelled rows to tune the teacher on",
                where=str(LABELLED),
                fix="cohobate run --set adapt.type=none",
            )
        model = self._load(source)
        tokenizer = teacher.load_tokenizer(source)
        limit = LengthLimit(self.max_tokens, self.too_long)
        examples = examples_of(rows, limit.apply(encode_all(tokenizer, rows)))
        limit.report(label)
        limit.refuse_none(len(examples), "params.yaml, adapt.max_tokens")
        vocabulary = len(tokenizer)
        provenance = provenance | {"number_format": self.number_format}
        # a folder below .cohobate/training, such as adapt@main
        name = label.replace(" ", "@")
        # provenance has the params and the source's fingerprint
        with checkpointing.resumable(name, provenance, checkpointing.content_hash(LABELLED)):
            fit(model, examples, [Hard()], self, seed=self.seed, label=label, vocabulary=vocabulary)
        checkpoints.save(model, tokenizer, folder, provenance, precision=self.save_precision)
        checkpointing.delete_checkpoints(name)
        return len(examples)

    def _check_kind(self, teacher: Teacher) -> None:
        if self.upcycle and teacher.kind != "causal":
            raise UserError(
                f"a teacher of kind {teacher.kind} cannot become a mixture of experts",
                where="params.yaml, adapt.upcycle",
                fix="cohobate run --set adapt.upcycle=null",
            )

    def _load(self, source: Path) -> Any:
        """Load the model to be tuned: as it is, or upcycled."""
        model, _ = checkpoints.load(source, device=checkpoints.accelerator())
        if not self.upcycle:
            return model
        from cohobate.models.experts import upcycle

        return upcycle(model, self.upcycle)


Tuning = Annotated[NoTuning | SftTuning, Field(discriminator="type")]


def tuning_of(adapt: Tuning, key: str, teacher: Teacher) -> Tuning:
    """Return how one teacher is tuned: the section `adapt`, with what `teachers.<key>.adapt` sets.

    Raises:
        UserError: the two together are no tuning.
    """
    if not teacher.adapt:
        return adapt
    section = adapt.model_dump(mode="json", exclude_unset=True)
    settings = tuning_settings(section, teacher.adapt)
    tuning: Tuning = validated(Tuning, settings, f"teachers.{key}.adapt")
    return tuning
