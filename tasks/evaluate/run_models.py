"""Runs the models: every checkpoint answers the test rows and is compared with the teacher."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cohobate.backends.settings import GenerateParams
from cohobate.data.records import Row, write_rows
from cohobate.data.tokenized import Encoded, encode_all, prompt_ids
from cohobate.evaluation.footprint import Footprint, footprint
from cohobate.generation.requests import Answer
from cohobate.progress import say
from cohobate.scoring.verifiers import Verifier
from tasks.evaluate import predictions
from tasks.evaluate.arms import Arm
from tasks.evaluate.fidelity import Fidelity, Texts
from tasks.evaluate.models_under_test import Absent, Loaded
from tasks.evaluate.predictions import Prediction
from tasks.evaluate.robustness import PERTURBED, VARIED, Variant
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import Measured
from tasks.evaluate.token_counts import write_bought, write_served


@dataclass
class Sitting:
    """What the checkpoints of one arm left: each by seed."""

    fidelity: dict[int, Fidelity] = field(default_factory=dict)
    readings: dict[int, dict[str, float]] = field(default_factory=dict)
    general: dict[int, dict[str, Any]] = field(default_factory=dict)
    variants: dict[int, list[str]] = field(default_factory=dict)
    footprint: Footprint | None = None
    """None where the weights are not here."""


class Examination:
    """The test as every checkpoint sits it: the same rows, the same decoding."""

    def __init__(
        self,
        params: EvaluateParams,
        verifier: Verifier,
        rows: list[Row],
        generate: GenerateParams,
    ) -> None:
        self._context = 0  # mean length of a prompt, in tokens of the first model with weights
        self.params, self.verifier, self.rows, self.generate = params, verifier, rows, generate

    def sit(self, arms: Sequence[Arm]) -> dict[str, Measured]:
        """Let every checkpoint answer; write its predictions; return what else was measured.

        The teacher comes first and stays in memory, the others come one at a time.
        """
        master, *others = arms
        sittings = {arm.name: Sitting() for arm in arms}
        teacher, taught = None, list[Encoded]()
        if master.has_weights:
            teacher = Loaded.of(self.params, master.checkpoints[0])
            taught = self._examine(master, 0, teacher, sittings[master.name])
        else:
            self._ask(master, sittings[master.name])
        for arm in others:
            sitting = sittings[arm.name]
            for seed, folder in arm.checkpoints.items():
                student = Loaded.of(self.params, folder)
                own = self._examine(arm, seed, student, sitting)
                if teacher and _one_vocabulary(teacher, student) and taught:
                    # what knows nothing yet of the task wrote no text worth the teacher's reading
                    ours = [] if arm.role == "initial" else own
                    sitting.fidelity[seed] = self.params.fidelity.compare(
                        teacher.reader,
                        student.reader,
                        Texts(taught, _behind(own, taught)),
                        Texts(_behind(taught[: len(ours)], ours), ours),
                        self.params.teacher,
                    )
        self._write_variants({arm.role: sittings[arm.name] for arm in arms})
        return {
            name: Measured(s.footprint, s.fidelity, s.readings, s.general)
            for name, s in sittings.items()
        }

    def time(self, arms: Mapping[str, Arm]) -> dict[str, Any]:
        """Measure teacher and student, as far as they are here, in turns on prompts of the test."""
        loaded = {
            role: Loaded.of(self.params, next(iter(a.checkpoints.values())))
            for role, a in arms.items()
        }
        rows = self.rows[: self.params.timing.batch]
        prompts = {
            name: prompt_ids(one.tokenizer, [row.full_prompt for row in one.asked(rows)])
            for name, one in loaded.items()
        }
        models = {name: one.model for name, one in loaded.items()}
        timings = self.params.timing.measure(models, prompts)
        return {**timings, "precision": self.params.number_format}

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
        decoded = loaded.answers(self.rows, f"{arm.called(seed)}: answering")
        given = self._scored(arm, seed, decoded)
        self._context = self._context or _mean_length(loaded, self.rows)
        sitting.footprint = footprint(loaded.model, arm.checkpoints[seed], self._context)
        if arm.role == "teacher":
            write_served(loaded.tokenizer, _answered(self.rows, given))
        if arm.role in VARIED and self.variants:
            sitting.variants[seed] = self._varied(arm, loaded, given)
        rows = loaded.asked([self.rows[n] for n in self.sample])
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

    def _ask(self, arm: Arm, sitting: Sitting) -> None:
        """Let a teacher answer whose weights are not here."""
        absent = Absent(self.params, self.generate)
        decoded = absent.answers(self.rows, f"{arm.name}: answering")
        given = self._scored(arm, 0, decoded)
        sitting.variants[0] = self._varied(arm, absent, given)
        write_bought(self.generate.backend_of(self.params.teacher), decoded)

    def _scored(self, arm: Arm, seed: int, decoded: Sequence[Answer]) -> list[Prediction]:
        """Score what one checkpoint answered, and write it."""
        metrics = self.params.answer_metrics
        rows = list(predictions.scored(self.rows, decoded, metrics, self.verifier))
        predictions.write(arm, seed, rows)
        mean = sum(row.scores[metrics[0].type] for row in rows) / len(rows)
        say(f"{arm.called(seed)}: {mean:.3f}")
        return rows

    def _varied(self, arm: Arm, loaded: Loaded | Absent, given: Sequence[Prediction]) -> list[str]:
        """Return the answers to the variants; a prompt that a change left as it was is known."""
        known = {row.prompt: own.answer for row, own in zip(self.rows, given, strict=True)}
        rows = [row for _, row in self.variants if row.prompt not in known]
        fresh = loaded.answers(rows, f"{arm.name}: other prompts")
        known |= {row.prompt: answer.text for row, answer in zip(rows, fresh, strict=True)}
        return [known[row.prompt] for _, row in self.variants]

    def _write_variants(self, by_role: Mapping[str, Sitting]) -> None:
        metric = self.params.answer_metrics[0]
        rows = []
        for place, (name, row) in enumerate(self.variants):
            given = {
                role: [answers[place] for answers in by_role[role].variants.values()]
                for role in VARIED
            }
            scores = {
                role: [metric.score(text, row.answer or "", self.verifier) for text in texts]
                for role, texts in given.items()
            }
            rows.append(
                Variant(variant=name, id=row.id, prompt=row.prompt, answers=given, scores=scores)
            )
        write_rows(PERTURBED, rows)


def _mean_length(loaded: Loaded, rows: Sequence[Row]) -> int:
    """Return the mean length of a prompt, in the tokens of a model."""
    prompts = [row.full_prompt for row in loaded.asked(rows)]
    lengths = [len(ids) for ids in prompt_ids(loaded.tokenizer, prompts)]
    return max(1, round(sum(lengths) / len(lengths)))


def _own_texts(loaded: Loaded, rows: Sequence[Row], given: Sequence[Prediction]) -> list[Encoded]:
    """Encode the prompts of rows with a model's own answers, closed where it closed them."""
    encoded = encode_all(loaded.tokenizer, _answered(rows, given))
    return [
        text if own.finish == "stop" else Encoded(text.prompt_ids, text.completion_ids[:-1])
        for text, own in zip(encoded, given, strict=True)
    ]


def _behind(prompts: Sequence[Encoded], answers: Sequence[Encoded]) -> list[Encoded]:
    """Put one model's answers behind the prompts as another model is asked them."""
    pairs = zip(prompts, answers, strict=True)
    return [Encoded(prompt.prompt_ids, answer.completion_ids) for prompt, answer in pairs]


def _answered(rows: Sequence[Row], given: Sequence[Prediction]) -> list[Row]:
    pairs = zip(rows, given, strict=True)
    return [row.model_copy(update={"answer": own.answer}) for row, own in pairs]


def _one_vocabulary(one: Loaded, other: Loaded) -> bool:
    return bool(one.tokenizer.get_vocab() == other.tokenizer.get_vocab())
