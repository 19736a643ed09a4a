"""On-policy distillation: the student generates answers, and learns the teacher's scores of them.

Given text teaches a student to continue good text only; on its own text it learns to correct its
own mistakes (GKD, Agarwal et al. 2023; MiniLLM, Gu et al. 2023). `student_text` is the share of
on-policy updates (λ of GKD, or DistiLLM's adaptive share); the others learn from the rows as they
are.

The teacher runs on every batch, so `targets` is its checkpoint, or its address where a service
scores text (cohobate/backends/served_source.py). Its weights are in this process or in Ray actors
of their own (cohobate/teachers/pooled_source.py). Answers are sampled from the
student's current weights; the same params give the same bytes.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from cohobate.data.records import ENDPOINT, Row
from cohobate.errors import UserError
from cohobate.losses.divergences import ReverseKL, Term
from cohobate.losses.uld import Uld
from cohobate.methods.phase import Phase, PhaseResult, checkpoint_path
from cohobate.methods.rollout_settings import ConstantShare, OnPolicySchedule, Sampling
from cohobate.models.number_formats import NumberFormat
from cohobate.progress import say
from cohobate.teachers.teacher_workers import TeacherWorkers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.backends.served_source import ServedSource
    from cohobate.data.examples import Example
    from cohobate.teachers.cross_tokenizer import CrossTokenizerSource
    from cohobate.teachers.pooled_source import PooledSource
    from cohobate.teachers.target_sources import LiveSource


class OnPolicy(Phase):
    """Divergences from a live teacher, on the student's own answers and on those of the rows."""

    method: Literal["on_policy"]
    terms: tuple[
        Annotated[Term | Uld, Field(discriminator="type")], ...  # type: ignore[valid-type]
    ] = Field((ReverseKL(),), min_length=1)
    """What the loss is made of; on the student's text and on the given alike. `uld` alone: the
    teacher has another tokenizer, and reads the student's text in its own tokens."""
    student_text: OnPolicySchedule = ConstantShare()
    """Which share of the updates learns from the student's own text."""
    sampling: Sampling = Sampling()
    # left out of params where it is the default: earlier runs resume
    teacher_workers: TeacherWorkers | None = Field(None, exclude_if=lambda workers: not workers)
    """Run the teacher in Ray actors of its own, such as `{workers: 2, gpus_each: 1}`: they score
    answers while the student generates others. Left out: it runs in this process."""

    @model_validator(mode="after")
    def _teacher_is_live(self) -> "OnPolicy":
        if not self.targets.startswith("models/"):
            raise ValueError(
                "on_policy needs a live teacher, as the student generates its rows: targets must "
                f"be a checkpoint such as models/adapt/main, not {self.targets}"
            )
        # an update that replays draws all its rows from the buffer, without repetition
        if 0 < self.sampling.replay < self.batch_size:
            raise ValueError("sampling.replay must hold the answers of one update at least")
        if self.sampling.writer.type == "vllm" and self.quantisation.type != "none":
            raise ValueError("writer vllm generates with whole weights: leave out quantisation")
        if self.sampling.writer.type == "vllm" and self.workers > 1:
            raise ValueError("writer vllm is for one worker: leave out writer, or workers: 1")
        if self.teacher_workers and (self.workers > 1 or self.crosses_tokenizers):
            raise ValueError("teacher_workers score for one worker, of the same tokenizer")
        chooses = self.sampling.candidates
        if chooses and (self.sampling.replay or self.sampling.writer.type == "vllm"):
            raise ValueError(
                "sampling.candidates are the student's at the time of its answer: they need "
                "replay: 0 and the writer transformers"
            )
        if any(term.type == "hard" for term in self.terms):
            raise ValueError(
                "a hard term would train the student on its own answers: give divergences alone"
            )
        others = [term.type for term in self.terms if not isinstance(term, Uld)]
        if self.crosses_tokenizers and others:
            raise ValueError(
                f"uld compares models of two tokenizers, and {others[0]} needs one: give uld alone"
            )
        if self.crosses_tokenizers and self.too_long != "drop":
            raise ValueError("uld aligns whole rows with the teacher's: too_long must be drop")
        return self

    @property
    def crosses_tokenizers(self) -> bool:
        """Whether the teacher may have another tokenizer than the student: `uld` aligns the two."""
        return any(isinstance(term, Uld) for term in self.terms)

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train against the teacher at `targets`; only `uld` does with another vocabulary."""
        from cohobate.methods.rollouts import StudentRollouts
        from cohobate.training.trainer import fit

        # prompts without an answer are of use where no update learns from given answers
        examples = self.prompts(tokenizer, rows) if self._own_text_alone else None
        if examples is None:
            examples = self.examples(tokenizer, rows)
        # the adaptive share is decided by rows that are not trained on
        held_out = examples[: self.student_text.held_out]
        examples = examples[len(held_out) :]
        elsewhere = self._teacher_elsewhere(tokenizer, seed)
        if elsewhere:
            elsewhere.attach(rows, examples)
        text = StudentRollouts(
            model,
            tokenizer,
            self.sampling,
            self.student_text,
            seed=seed,
            updates=self.updates_over(len(examples)),
            # DistiLLM-2 contrasts given answers with the student's, within each update
            mix_given=any(term.type == "distillm2" for term in self.terms),
            autocast=self.number_format == "bfloat16",
            held_out=held_out,
            vocabulary=len(tokenizer),
            scorer=elsewhere,
        )
        with elsewhere or nullcontext():
            history = fit(
                model,
                examples,
                self.terms,
                self,
                seed=seed,
                label=label,
                vocabulary=len(tokenizer),
                target_source=elsewhere or self.teacher(tokenizer, rows, examples, seed),
                rollouts=text,
            )
        if elsewhere and elsewhere.refused:
            text.counts["rows without signals"] += elsewhere.refused
        say(f"{label}: {', '.join(f'{n} {name}' for name, n in sorted(text.counts.items()))}")
        return PhaseResult(history, len(examples), text.counts)

    def _teacher_elsewhere(
        self, tokenizer: "PreTrainedTokenizerBase", seed: int
    ) -> "ServedSource | PooledSource | None":
        """Return the teacher as a service or as actors that score rows; None where it runs here."""
        folder = checkpoint_path(Path(self.targets), seed)
        if not (folder / ENDPOINT).exists():
            return self._pooled_teacher(folder, tokenizer) if self.teacher_workers else None
        from cohobate.backends.served_source import ServedSource

        if self.workers > 1 or self.teacher_workers:
            raise UserError(
                "a teacher behind an endpoint scores the answers of one worker alone",
                where=f"workers: {self.workers}, targets: {self.targets}",
                fix="workers: 1 and no teacher_workers, or a teacher whose weights are here",
            )
        return ServedSource(folder.name, tokenizer, self.terms, self.sampling.candidates)

    def _pooled_teacher(self, folder: Path, tokenizer: "PreTrainedTokenizerBase") -> "PooledSource":
        from cohobate.models import checkpoints
        from cohobate.teachers.pooled_source import PooledSource
        from cohobate.teachers.ray_pool import TeacherPool

        assert self.teacher_workers is not None
        theirs = checkpoints.load_tokenizer(folder)
        ids = self._teacher_ids(tokenizer, theirs, folder)
        device = checkpoints.accelerator()
        number_format = self.teacher_workers.number_format(self.precision, device)
        pool = TeacherPool(folder, number_format, self.teacher_workers)
        return PooledSource(pool, theirs, len(tokenizer), ids)

    def _teacher_ids(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        theirs: "PreTrainedTokenizerBase",
        folder: Path,
    ) -> "Tensor | None":
        """Return the teacher's id of each of the student's tokens; None where they are the same.

        Raises:
            UserError: the teacher lacks tokens of the student's vocabulary.
        """
        from cohobate.teachers.target_sources import map_vocabulary

        shared, ids = map_vocabulary(tokenizer, theirs, str(folder))
        # the student may generate any of its ids, and the teacher reads them
        if shared < len(tokenizer):
            raise UserError(
                f"the student has {len(tokenizer)} token ids, of which the teacher has {shared}",
                where=f"{folder}, and models/{self.start}",
                fix="init_student: a student with the teacher's tokenizer",
            )
        return ids

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format student and teacher run on this machine: the same."""
        return super().number_formats() | {"teachers": self.number_format}

    @property
    def _own_text_alone(self) -> bool:
        return isinstance(self.student_text, ConstantShare) and self.student_text.share == 1

    def prompts(self, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> "list[Example]":
        """Return the rows without their answers: none is used where every update is on-policy."""
        none = {"answer": "", "reasoning": None, "tool_calls": None, "learn": None}
        blank = [row.model_copy(update=none) for row in rows]
        # prompt and longest answer together are within max_tokens
        longest = self.max_tokens - self.sampling.decoding.max_tokens
        # a prompt that is cut keeps its end, behind which one id closes the empty answer
        within = longest + 1 if self.too_long == "truncate_left" else None
        return [
            replace(example, ids=example.ids[:start], spans=((start, start),))
            for example in self.examples(tokenizer, blank, within)
            if (start := example.prompt_length) <= longest
        ]

    def teacher(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        examples: "Sequence[Example]",
        seed: int,
    ) -> "LiveSource | CrossTokenizerSource":
        """Load the teacher as a live target source.

        Raises:
            UserError: it lacks tokens of the student's vocabulary.
        """
        from cohobate.data.examples import common_prefix
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints
        from cohobate.teachers.cross_tokenizer import CrossTokenizerSource
        from cohobate.teachers.target_sources import LiveSource

        folder = checkpoint_path(Path(self.targets), seed)
        model, theirs = load_frozen(
            folder,
            precision=self.precision,
            device=checkpoints.accelerator(),
            sharded=self.shards,
        )
        if self.crosses_tokenizers:
            crossed = CrossTokenizerSource(model, theirs, tokenizer)
            crossed.attach(rows, examples, rollouts=True)
            return crossed
        ids = self._teacher_ids(tokenizer, theirs, folder)
        # None: the teacher numbers its tokens as the student does
        numbers = {} if ids is None else {folder.name: ids}
        prefix_P = common_prefix(examples)
        source = LiveSource(
            {folder.name: model},
            len(tokenizer),
            teacher_ids=numbers,
            prefix_P=prefix_P,
            tokenizers={folder.name: theirs},
        )
        source.attach(rows, examples)
        return source
