"""The student answers what it is sure of, and the teacher the rest: how much traffic is that?

A row goes to the student where its confidence is at least a threshold. The threshold is chosen on
one half of the test rows and judged on the other, and the other way round: judged on the rows it
was chosen on, it would look better than it is.

Legend: K seeds, N rows.
"""

import csv
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cohobate.data.records import EVALUATE
from cohobate.evaluation.bootstrap import Bootstrap, Floats
from cohobate.params import Section

ROUTER = EVALUATE / "router.csv"
ROUTED = EVALUATE / "router.json"


class Router(Section):
    """What is asked of teacher and student together."""

    floor: float = Field(0.98, gt=0)
    """Share of the teacher's score that must be kept."""
    points: int = Field(40, ge=2)
    """Of the curve."""
    seed: int = 0
    """Of the halves."""

    def curve(self, sure_KN: Floats, student_KN: Floats, teacher_N: Floats) -> list[dict[str, Any]]:
        """Return the score of both together at each share of traffic that the student takes."""
        teacher_M = np.tile(teacher_N, len(sure_KN))
        order = np.argsort(-sure_KN.ravel(), kind="stable")
        gained = (student_KN.ravel() - teacher_M)[order].cumsum()
        lines = []
        for point in range(self.points + 1):
            taken = round(point * len(order) / self.points)
            score = (teacher_M.sum() + (gained[taken - 1] if taken else 0.0)) / len(order)
            least = float(sure_KN.ravel()[order[taken - 1]]) if taken else 1.0
            share = taken / len(order)
            lines.append({"share": round(share, 6), "score": round(score, 6), "confidence": least})
        return lines

    def judge(
        self, sure_KN: Floats, student_KN: Floats, teacher_N: Floats, draws: int
    ) -> dict[str, Any]:
        """Return what share of the traffic the student takes at the floor, and what is kept."""
        half_N = np.random.default_rng(self.seed).permutation(len(teacher_N)) % 2
        to_student_KN = np.zeros(sure_KN.shape, dtype=bool)
        thresholds = []
        for half in (0, 1):
            chosen = half_N == half
            threshold = self._threshold(
                sure_KN[:, chosen], student_KN[:, chosen], teacher_N[chosen]
            )
            to_student_KN[:, ~chosen] = sure_KN[:, ~chosen] >= threshold
            thresholds.append(round(float(threshold), 4) if np.isfinite(threshold) else None)
        together_KN = np.where(to_student_KN, student_KN, teacher_N[None])
        scores = {"together": together_KN, "teacher": teacher_N[None]}
        kept = Bootstrap(scores, draws, self.seed).ratio("together", "teacher")
        return {
            "floor": self.floor,
            "share": round(float(to_student_KN.mean()), 6),
            "score": round(float(together_KN.mean()), 6),
            "kept": kept and kept.rounded(),
            "thresholds": thresholds,
        }

    def _threshold(self, sure_KN: Floats, student_KN: Floats, teacher_N: Floats) -> float:
        """Return the lowest confidence that keeps the floor; infinite where none does."""
        sure: NDArray[np.float64] = sure_KN.ravel()
        teacher = np.tile(teacher_N, len(sure_KN))
        order = np.argsort(-sure, kind="stable")
        together = teacher.sum() + (student_KN.ravel() - teacher)[order].cumsum()
        last_of_equals = np.append(np.diff(sure[order]) != 0, True)
        good = np.flatnonzero((together >= self.floor * teacher.sum()) & last_of_equals)
        return float(sure[order[good[-1]]]) if len(good) else float("inf")


def write_curve(lines: list[dict[str, Any]]) -> None:
    """Write the curve for the report and for DVC's plots."""
    with ROUTER.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["share", "score", "confidence"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
