"""Statistics of the predictions: scores with intervals, retention, gain, and the gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cohobate.data.records import Row
from cohobate.evaluation.bootstrap import ArmIntervals, Interval
from cohobate.evaluation.footprint import Footprint
from cohobate.evaluation.gate import Gate, ScoreComparison
from cohobate.scoring.answer_figures import FigureOfAnswers
from cohobate.scoring.metrics import LikelihoodScore
from cohobate.scoring.verifiers import Task
from tasks.evaluate.arms import BASELINE_BEST, Arm
from tasks.evaluate.fidelity import Fidelity, TokenAgreement
from tasks.evaluate.predictions import Predictions
from tasks.evaluate.task_scores import TaskScores

Verdict = Literal["yes", "within noise", "no"]


@dataclass
class ModelResults:
    """What was measured on the checkpoints of one arm, beside the scores of their answers."""

    footprint: Footprint | None = None
    """None for a teacher whose weights are not here."""
    fidelity: dict[int, Fidelity] = field(default_factory=dict)
    """By seed; empty for the teacher itself, and where the vocabularies differ."""
    model_metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    """By seed, the metrics that need the model: perplexity, label accuracy."""
    general_loss: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By seed, the loss on general text."""
    variants: dict[int, list[str]] = field(default_factory=dict)
    """By seed, the answers to the perturbed and out-of-distribution rows."""


@dataclass(frozen=True)
class Statistics:
    """Scores, intervals and verdict of all arms, computed from their predictions."""

    arms: list[Arm]
    predictions: Predictions
    results: Mapping[str, ModelResults]
    """By arm."""
    metric: str
    """The metric that decides; the others are only reported."""
    rows: Sequence[Row]
    """The test rows."""
    task: Task
    bootstrap: ArmIntervals
    by_task: TaskScores | None
    """Scores by task; None where the round has one source, or a likelihood decides."""
    bins: int
    gate: Gate
    likelihood: LikelihoodScore | None = None
    """The metric that decides, where it is one of a likelihood: lower is better."""
    figures: Sequence[FigureOfAnswers] = ()
    """Figures of all answers together, which are reported."""

    @property
    def names(self) -> dict[str, str]:
        """The names of the arms with a role, by role."""
        return {arm.role: arm.name for arm in self.arms if arm.role != "other"}

    def table(self) -> list[dict[str, Any]]:
        """Return one row of figures for each arm, as `data/evaluate/arms.json` holds them."""
        return [self._row(arm) for arm in self.arms]

    def metrics(self) -> dict[str, Any]:
        """Return what `reports/metrics.json` holds, for `dvc metrics` and for the gate."""
        rows = self.table()
        by_role = {row["role"]: row for row in rows if row["role"] != "other"}
        student, teacher = by_role["student"], by_role["teacher"]
        gain, retention, over_best = self.gain(), self.retention(), self.gain_over_best()
        counts = {role: _brief(row) for role, row in by_role.items()}
        others = {row["arm"]: _brief(row) for row in rows if row["role"] == "other"}
        return {
            **counts,
            **({"phases": others} if others else {}),
            "gain_over_baseline": gain.rounded(),
            **({"gain_over_baseline_best": over_best.rounded()} if over_best else {}),
            "verdict": verdict(gain),
            "gate": self.gate.judge(
                ScoreComparison(gain.low, retention.mean if retention else None),
                self.by_task.comparisons() if self.by_task else None,
                over_best.low if over_best else None,
            ),
            "retention": retention and round(retention.mean, 6),
            "retention_low": retention and round(retention.low, 6),
            "retention_high": retention and round(retention.high, 6),
            "parameters_ratio": _ratio(student, teacher, "parameters"),
            "non_embedding_parameters_ratio": _ratio(student, teacher, "non_embedding_parameters"),
            "bytes_ratio": _ratio(student, teacher, "bytes"),
            # of FLOPs, which are the same on every machine; measured speeds are not hashed
            "speedup": _ratio(teacher, student, "flops_per_token"),
            "agreement": student["agreement"],
            "fidelity": student["fidelity"],
            "calibration_error": student["calibration_error"],
            "metric": self.metric,
            "seeds": max(len(arm.checkpoints) for arm in self.arms),
            "test_rows": len(next(iter(self.predictions.by_arm["teacher"].values()))),
            **(self.by_task.metrics() if self.by_task else {}),
        }

    def shown(self, row: Row, answer: str) -> str:
        """Return a model's answer to a test row as the report shows it."""
        return self.task.verifier_of(row.task).shown(answer, row.full_answer)

    def mean_score(self, arm: str, positions: Sequence[int]) -> float:
        """Return an arm's score on some test rows."""
        if self.likelihood:
            return self.likelihood.figure(self.predictions.mean_loss(arm, positions))
        scores_ZR = self.predictions.scores(self.metric)[arm]
        return float(scores_ZR[:, positions].mean())

    def gain(self) -> Interval:
        """Return the student's gain over the baseline, paired by test row."""
        return self.bootstrap.difference(self.names["student"], self.names["baseline"])

    def gain_over_best(self) -> Interval | None:
        """Return the gain over the baseline's best checkpoint on dev; None where it keeps none."""
        if BASELINE_BEST not in self.names:
            return None
        return self.bootstrap.difference(self.names["student"], self.names[BASELINE_BEST])

    def retention(self) -> Interval | None:
        """Return the student's score as a share of the teacher's; None where that is 0.

        Where lower is better, it is the teacher's as a share of the student's.
        """
        return self.bootstrap.ratio(self.names["student"], "teacher")

    def _row(self, arm: Arm) -> dict[str, Any]:
        kept = self.bootstrap.ratio(arm.name, "teacher")
        gain = self.bootstrap.difference(arm.name, self.names["baseline"])
        predictions, results = self.predictions, self.results[arm.name]
        answers = [p for rows in predictions.by_arm[arm.name].values() for p in rows]
        error = predictions.calibration_error(arm.name, self.metric, self.bins)
        score = self.bootstrap.score(arm.name)
        means = {
            name: predictions.mean_score(arm.name, name)
            for name in dict.fromkeys(name for p in answers for name in p.scores)
        }
        means |= {self.metric: score.mean} if self.likelihood else {}
        means |= self._figures(arm)
        return {
            "arm": arm.name,
            "role": arm.role,
            "checkpoints": [str(path) for path in arm.checkpoints.values()],
            "updates": arm.updates,
            "score": score.rounded(),
            "by_seed": {
                str(seed): round(float(mean), 6)
                for seed, mean in zip(
                    arm.checkpoints, self.bootstrap.seed_scores(arm.name), strict=True
                )
            },
            "metrics": {name: round(mean, 6) for name, mean in means.items()}
            | _means(list(results.model_metrics.values())),
            "bits_per_byte": _means(
                [{"mean": losses["bits_per_byte"]} for losses in results.general_loss.values()]
            ).get("mean"),
            "retention": kept.rounded() if kept else None,
            "gain_over_baseline": gain.rounded() if arm.role != "baseline" else None,
            "unfinished": round(sum(p.finish == "length" for p in answers) / len(answers), 6),
            "agreement": self._agreement(arm),
            "fidelity": _mean_fidelity(list(results.fidelity.values())),
            "calibration_error": None if error is None else round(error, 6),
            "footprint": results.footprint and results.footprint.model_dump(),
        }

    def _figures(self, arm: Arm) -> dict[str, float]:
        """Return the figures of all answers of an arm together, means over its seeds."""
        means = {}
        for figure in self.figures:
            seeds = self.predictions.by_arm[arm.name].values()
            texts = ([p.answer for p in answers] for answers in seeds)
            values = [figure.measure(self.rows, own, self.task) for own in texts]
            if known := [value for value in values if value is not None]:
                means[figure.name] = sum(known) / len(known)
        return means

    def _agreement(self, arm: Arm) -> float | None:
        """Return how often an arm gives the teacher's answer; None where none was generated."""
        if not any(p.answer for rows in self.predictions.by_arm["teacher"].values() for p in rows):
            return None
        return round(self.predictions.same_answer(arm.name, "teacher", self.rows, self.task), 6)


def verdict(gain: Interval) -> Verdict:
    """Return whether distillation beat the baseline, by the interval of the gain."""
    if gain.low > 0:
        return "yes"
    return "no" if gain.high < 0 else "within noise"


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    score = row["score"]
    return {"score": score["mean"], "low": score["low"], "high": score["high"]}


def _ratio(row: dict[str, Any], other: dict[str, Any], figure: str) -> float | None:
    if not (row["footprint"] and other["footprint"]):
        return None
    above, below = row["footprint"][figure], other["footprint"][figure]
    return round(above / below, 6) if below else None


def _mean_fidelity(by_seed: list[Fidelity]) -> dict[str, Any] | None:
    if not by_seed:
        return None
    own = [fidelity.student_text for fidelity in by_seed if fidelity.student_text]
    return _mean_agreement(by_seed) | ({"student_text": _mean_agreement(own)} if own else {})


def _mean_agreement(by_seed: Sequence[TokenAgreement]) -> dict[str, Any]:
    figures = [
        agreement.model_dump(include={"top1_agreement", "top_k_overlap", "kl", "reverse_kl"})
        for agreement in by_seed
    ]
    return _means(figures) | {"tokens": by_seed[0].tokens}


def _means(by_seed: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the seeds that have it."""
    names = list(by_seed[0]) if by_seed else []
    return {
        name: round(sum(figures[name] for figures in by_seed) / len(by_seed), 6)
        for name in names
        # a figure that one seed lacks is left out: means of other seeds would not compare
        if all(name in figures for figures in by_seed)
    }
