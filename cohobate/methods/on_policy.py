"""On-policy distillation: the student answers the rows' prompts, the teacher scores what it wrote.

What is given teaches a student to go on from good text only; its own text shows it where it itself
goes astray (GKD, Agarwal et al. 2023; MiniLLM, Gu et al. 2023). `student_text` says how many of the
updates are on-policy (λ of GKD, or DistiLLM's adaptive share), the others learn from the rows as
they are. Every update counts as one, whoever wrote its text.

The teacher is asked on every batch, so `targets` is its checkpoint. The answers are sampled from
the student's weights of that very update; the same params give the same bytes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.losses.divergences import ReverseKL, Term
from cohobate.methods.phase import PhaseResult, SingleProcess, checkpoint_path
from cohobate.methods.rollout_settings import ConstantShare, OnPolicySchedule, Sampling
from cohobate.models.number_formats import NumberFormat
from cohobate.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.teachers.target_sources import LiveSource


class OnPolicy(SingleProcess):
    """Divergences from a live teacher, on the student's own answers and on those of the rows."""

    method: Literal["on_policy"]
    terms: tuple[Term, ...] = Field((ReverseKL(),), min_length=1)
    """What the loss is made of; on the student's text and on the given alike."""
    student_text: OnPolicySchedule = ConstantShare()
    """Which share of the updates learns from the student's own text."""
    sampling: Sampling = Sampling()

    @model_validator(mode="after")
    def _the_teacher_is_asked(self) -> "OnPolicy":
        if not self.targets.startswith("models/"):
            raise ValueError(
                "nobody knows beforehand what the student will write: targets must be a teacher "
                f"that can be asked, such as models/adapt/main, not {self.targets}"
            )
        if 0 < self.sampling.replay < self.batch_size:
            raise ValueError("sampling.replay must hold the answers of one update at least")
        whole = self.adapter.type == "full" and self.quantisation.type == "none"
        if self.sampling.writer.type == "vllm" and not whole:
            raise ValueError("vllm writes with whole weights: no adapter, no quantisation, please")
        if any(term.type == "hard" for term in self.terms):
            raise ValueError(
                "a hard term would teach the student its own answers: give divergences alone"
            )
        return self

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train against the teacher at `targets`, which must share the student's vocabulary."""
        from cohobate.methods.rollouts import StudentRollouts
        from cohobate.training.trainer import fit

        examples = self.prompts(tokenizer, rows) if self._own_text_alone else None
        if examples is None:
            examples = self.examples(tokenizer, rows)
        held_out = examples[: self.student_text.held_out]
        examples = examples[len(held_out) :]
        text = StudentRollouts(
            model,
            tokenizer,
            self.sampling,
            self.student_text,
            seed=seed,
            updates=self.updates_over(len(examples)),
            beside_given=any(term.type == "distillm2" for term in self.terms),
            autocast=self.number_format == "bfloat16",
            held_out=held_out,
            vocabulary=len(tokenizer),
        )
        history = fit(
            model,
            examples,
            self.terms,
            self,
            seed=seed,
            label=label,
            vocabulary=len(tokenizer),
            target_source=self.teacher(tokenizer, examples, seed),
            rollouts=text,
        )
        say(f"{label}: {', '.join(f'{n} {name}' for name, n in sorted(text.counts.items()))}")
        return PhaseResult(history, len(examples), text.counts)

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format student and teacher run on this machine: the same."""
        return super().number_formats() | {"teachers": self.number_format}

    @property
    def _own_text_alone(self) -> bool:
        return isinstance(self.student_text, ConstantShare) and self.student_text.share == 1

    def prompts(self, tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Row]) -> "list[Example]":
        """Return the rows without their answers: none is needed where none is learnt from."""
        blank = [row.model_copy(update={"answer": ""}) for row in rows]
        longest = self.max_tokens - self.sampling.decoding.max_tokens
        return [
            replace(example, ids=example.ids[: example.prompt_length])
            for example in self.examples(tokenizer, blank)
            if example.prompt_length <= longest
        ]

    def teacher(
        self, tokenizer: "PreTrainedTokenizerBase", examples: "Sequence[Example]", seed: int
    ) -> "LiveSource":
        """Load the teacher, ready to be asked of these rows' prompts.

        Raises:
            UserError: it gives the ids other meanings than the student does.
        """
        from cohobate.data.examples import common_prefix
        from cohobate.fast.frozen import load_frozen
        from cohobate.models import checkpoints
        from cohobate.teachers.target_sources import LiveSource, map_vocabulary

        folder = checkpoint_path(Path(self.targets), seed)
        model, theirs = load_frozen(
            folder, precision=self.precision, device=checkpoints.accelerator()
        )
        shared, ids = map_vocabulary(tokenizer, theirs, str(folder))
        if shared < len(tokenizer):
            raise UserError(
                f"the student may write {len(tokenizer)} ids, of which the teacher has {shared}",
                where=f"{folder}, and models/{self.start}",
                fix="shape a student with the teacher's tokenizer",
            )
        numbers = {} if ids is None else {folder.name: ids}
        prefix_P = common_prefix(examples)
        return LiveSource(
            {folder.name: model}, len(tokenizer), teacher_ids=numbers, prefix_P=prefix_P
        )
