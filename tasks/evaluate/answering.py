"""Runs the models: every checkpoint answers the test rows and is compared with the teacher."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks import checkpoints
from tasks.decoding import answers
from tasks.evaluate import predictions
from tasks.evaluate.arms import Arm
from tasks.evaluate.efficiency import footprint
from tasks.evaluate.fidelity import Fidelity, compare
from tasks.evaluate.findings import Measured
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.settings import EvaluateParams
from tasks.progress import say, track
from tasks.records import Row
from tasks.text import prompt_ids
from tasks.verifiers import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Loaded(NamedTuple):
    """A model in memory, and how it reads text."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


class Examination:
    """The test as every checkpoint sits it: the same rows, the same decoding."""

    def __init__(self, params: EvaluateParams, verifier: Verifier, rows: list[Row]) -> None:
        self.params, self.verifier, self.rows = params, verifier, rows

    def sit(self, arms: Sequence[Arm]) -> dict[str, Measured]:
        """Let every checkpoint answer; write its predictions; return what else was measured.

        The teacher comes first and stays in memory, the others come one at a time.
        """
        master, *others = arms
        teacher = self.load(master.checkpoints[0])
        shown = self._as_teacher_rows(self._answers(master, 0, teacher))
        context = self._context(teacher)
        size = footprint(teacher.model, master.checkpoints[0], context)
        measured = {master.name: Measured(size, {})}
        for arm in others:
            fidelity: dict[int, Fidelity] = {}
            for seed, folder in arm.checkpoints.items():
                student = self.load(folder)
                self._answers(arm, seed, student)
                if _one_vocabulary(teacher, student) and shown:
                    fidelity[seed] = compare(
                        teacher.model,
                        student.model,
                        teacher.tokenizer,
                        shown,
                        self.params.batching.rows,
                    )
                size = footprint(student.model, folder, context)
            measured[arm.name] = Measured(size, fidelity)
        return measured

    def time(self, teacher: Path, student: Path) -> dict[str, Any]:
        """Measure teacher and student in turns, on prompts of the test."""
        loaded = {"teacher": self.load(teacher), "student": self.load(student)}
        texts = [row.prompt for row in self.rows[: self.params.timing.batch]]
        prompts = {name: prompt_ids(one.tokenizer, texts) for name, one in loaded.items()}
        models = {name: one.model for name, one in loaded.items()}
        timings = self.params.timing.measure(models, prompts)
        return {**timings, "precision": self.params.precision}

    def load(self, folder: Path) -> Loaded:
        """Load a checkpoint in the precision of the test."""
        return Loaded(*checkpoints.load(folder, precision=self.params.precision))

    def _answers(self, arm: Arm, seed: int, loaded: Loaded) -> list[Prediction]:
        what = f"{arm.name} seed {seed}" if seed else arm.name
        prompts = [row.prompt for row in self.rows]
        how, batching, threads = self.params.decoding, self.params.batching, self.params.threads
        decoded = answers(*loaded, prompts, how, batching, threads=threads)
        found = dict(track(decoded, total=len(prompts), what=f"{what}: answering"))
        in_order = (found[place] for place in range(len(prompts)))
        metrics = self.params.metrics
        rows = list(predictions.scored(self.rows, in_order, metrics, self.verifier))
        predictions.write(arm, seed, rows)
        say(f"{what}: {sum(row.scores[metrics[0].type] for row in rows) / len(rows):.3f}")
        return rows

    def _as_teacher_rows(self, given: Sequence[Prediction]) -> list[Row]:
        """Return a sample of the test rows with the teacher's answers in place of their own."""
        pairs = list(zip(self.rows, given, strict=True))
        random.Random(self.params.seed).shuffle(pairs)
        return [
            row.model_copy(update={"answer": prediction.answer})
            for row, prediction in pairs[: self.params.fidelity_rows]
        ]

    def _context(self, loaded: Loaded) -> int:
        """Return the mean length of a prompt, in the teacher's tokens."""
        lengths = [len(ids) for ids in prompt_ids(loaded.tokenizer, [r.prompt for r in self.rows])]
        return max(1, round(sum(lengths) / len(lengths)))


def _one_vocabulary(one: Loaded, other: Loaded) -> bool:
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
