"""Runs the models: every checkpoint answers the test rows and is compared with the teacher."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluate import predictions
from tasks.evaluate.arms import Arm
from tasks.evaluate.efficiency import footprint
from tasks.evaluate.fidelity import Fidelity
from tasks.evaluate.findings import Measured
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.readings import Reader
from tasks.evaluate.robustness import PERTURBED, Variant
from tasks.evaluate.served import write_served
from tasks.evaluate.settings import EvaluateParams
from tasks.judging.verifiers import Verifier
from tasks.models import checkpoints
from tasks.models.decoding import Answer, answers
from tasks.progress import say, track
from tasks.rows.records import Row, write_rows
from tasks.rows.text import Encoded, encode_all, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A model in memory, how it reads text, and what it has read."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    reader: Reader


@dataclass
class Sitting:
    """What the checkpoints of one arm left: each by seed."""

    fidelity: dict[int, Fidelity] = field(default_factory=dict)
    readings: dict[int, dict[str, float]] = field(default_factory=dict)
    general: dict[int, dict[str, Any]] = field(default_factory=dict)
    variants: dict[int, list[str]] = field(default_factory=dict)


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
        context, sittings = self._context(teacher), {master.name: Sitting()}
        taught = self._examine(master, 0, teacher, sittings[master.name])
        measured = {master.name: footprint(teacher.model, master.checkpoints[0], context)}
        for arm in others:
            sitting = sittings[arm.name] = Sitting()
            for seed, folder in arm.checkpoints.items():
                student = self.load(folder)
                own = self._examine(arm, seed, student, sitting)
                if arm.role == "initial":
                    own = []  # knows nothing yet of the task: no text worth the teacher's reading
                if _one_vocabulary(teacher, student) and taught:
                    sitting.fidelity[seed] = self.params.fidelity.compare(
                        teacher.reader, student.reader, taught, own, self.params.teacher
                    )
                measured[arm.name] = footprint(student.model, folder, context)
        self._write_variants({arm.role: sittings[arm.name] for arm in arms})
        return {
            name: Measured(measured[name], s.fidelity, s.readings, s.general)
            for name, s in sittings.items()
        }

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
        model, tokenizer = checkpoints.load(folder, precision=self.params.precision)
        size, threads = self.params.batching.rows, self.params.threads
        return Loaded(model, tokenizer, Reader(model, tokenizer, batch=size, threads=threads))

    @cached_property
    def variants(self) -> list[tuple[str, Row]]:
        """The rows that are not test rows as they stand, each with the name of its kind."""
        return self.params.robustness.variants(self.rows)

    @cached_property
    def sample(self) -> list[int]:
        """Places of the test rows on which the models read."""
        places = list(range(len(self.rows)))
        random.Random(self.params.seed).shuffle(places)
        return places[: self.params.reading_rows]

    def _examine(self, arm: Arm, seed: int, loaded: Loaded, sitting: Sitting) -> list[Encoded]:
        """Let one checkpoint answer and read; return its own answers to the sample, encoded."""
        given = self._answers(arm, seed, loaded)
        if arm.role == "teacher":
            write_served(loaded.tokenizer, _answered(self.rows, given))
        if arm.role in ("teacher", "student") and self.variants:
            sitting.variants[seed] = self._varied(arm, loaded, given)
        rows = [self.rows[n] for n in self.sample]
        own = _own_texts(loaded, rows, [given[n] for n in self.sample])
        references = list(encode_all(loaded.tokenizer, rows))
        loaded.reader.read([*([] if arm.role == "initial" else own), *references])
        found = {
            metric.type: metric.measure(loaded.reader, rows, references, self.verifier)
            for metric in self.params.reading_metrics
            if rows
        }
        sitting.readings[seed] = {k: round(v, 6) for k, v in found.items() if v is not None}
        forgetting = self.params.forgetting
        sitting.general[seed] = forgetting.measure(loaded.reader, forgetting.passages())
        return own

    def _answers(self, arm: Arm, seed: int, loaded: Loaded) -> list[Prediction]:
        what = f"{arm.name} seed {seed}" if seed else arm.name
        decoded = self._decoded(loaded, self.rows, f"{what}: answering")
        metrics = self.params.answer_metrics
        rows = list(predictions.scored(self.rows, decoded, metrics, self.verifier))
        predictions.write(arm, seed, rows)
        say(f"{what}: {sum(row.scores[metrics[0].type] for row in rows) / len(rows):.3f}")
        return rows

    def _varied(self, arm: Arm, loaded: Loaded, given: Sequence[Prediction]) -> list[str]:
        """Return the answers to the variants; a prompt that a change left as it was is known."""
        known = {row.prompt: own.answer for row, own in zip(self.rows, given, strict=True)}
        rows = [row for _, row in self.variants if row.prompt not in known]
        fresh = self._decoded(loaded, rows, f"{arm.name}: other prompts")
        known |= {row.prompt: answer.text for row, answer in zip(rows, fresh, strict=True)}
        return [known[row.prompt] for _, row in self.variants]

    def _decoded(self, loaded: Loaded, rows: Sequence[Row], what: str) -> list[Answer]:
        prompts = [row.prompt for row in rows]
        how, batching, threads = self.params.decoding, self.params.batching, self.params.threads
        decoded = answers(loaded.model, loaded.tokenizer, prompts, how, batching, threads=threads)
        found = dict(track(decoded, total=len(prompts), what=what))
        return [found[place] for place in range(len(prompts))]

    def _write_variants(self, by_role: Mapping[str, Sitting]) -> None:
        metric = self.params.answer_metrics[0]
        rows = []
        for place, (name, row) in enumerate(self.variants):
            given = {
                role: [answers[place] for answers in by_role[role].variants.values()]
                for role in ("teacher", "student")
            }
            scores = {
                role: [metric.score(text, row.answer or "", self.verifier) for text in texts]
                for role, texts in given.items()
            }
            rows.append(
                Variant(variant=name, id=row.id, prompt=row.prompt, answers=given, scores=scores)
            )
        write_rows(PERTURBED, rows)

    def _context(self, loaded: Loaded) -> int:
        """Return the mean length of a prompt, in the teacher's tokens."""
        lengths = [len(ids) for ids in prompt_ids(loaded.tokenizer, [r.prompt for r in self.rows])]
        return max(1, round(sum(lengths) / len(lengths)))


def _own_texts(loaded: Loaded, rows: Sequence[Row], given: Sequence[Prediction]) -> list[Encoded]:
    """Encode the prompts of rows with a model's own answers, closed where it closed them."""
    encoded = encode_all(loaded.tokenizer, _answered(rows, given))
    return [
        text if own.finish == "stop" else Encoded(text.prompt_ids, text.completion_ids[:-1])
        for text, own in zip(encoded, given, strict=True)
    ]


def _answered(rows: Sequence[Row], given: Sequence[Prediction]) -> list[Row]:
    pairs = zip(rows, given, strict=True)
    return [row.model_copy(update={"answer": own.answer}) for row, own in pairs]


def _one_vocabulary(one: Loaded, other: Loaded) -> bool:
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
