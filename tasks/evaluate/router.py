"""Router between student and teacher: how much traffic the student can take by its confidence.

A row goes to the student where its confidence reaches a threshold. The threshold is chosen on one
half of the test rows and evaluated on the other, and vice versa: on the rows it was chosen on, it
would look better than it is. Arrays are (Z, R): Z seeds, R rows.
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
    """What student and teacher together must reach."""

    floor: float = Field(0.98, gt=0)
    """Share of the teacher's score that must be kept."""
    points: int = Field(40, ge=2)
    """Number of points of the curve."""
    seed: int = 0
    """Seed of the split into halves."""

    def curve(
        self, confidence_ZR: Floats, student_ZR: Floats, teacher_R: Floats
    ) -> list[dict[str, Any]]:
        """Return the joint score at each share of traffic that the student takes."""
        teacher = np.tile(teacher_R, len(confidence_ZR))
        order = np.argsort(-confidence_ZR.ravel(), kind="stable")
        # gained[n]: what the n + 1 most confident answers of the student add to the teacher's sum
        gained = (student_ZR.ravel() - teacher)[order].cumsum()
        lines = []
        for point in range(self.points + 1):
            taken = round(point * len(order) / self.points)
            score = (teacher.sum() + (gained[taken - 1] if taken else 0.0)) / len(order)
            least = float(confidence_ZR.ravel()[order[taken - 1]]) if taken else 1.0
            share = taken / len(order)
            lines.append({"share": round(share, 6), "score": round(score, 6), "confidence": least})
        return lines

    def judge(
        self, confidence_ZR: Floats, student_ZR: Floats, teacher_R: Floats, draws: int
    ) -> dict[str, Any]:
        """Return the student's share of the traffic at the floor, and the score that is kept."""
        # by row, so that all seeds of a row are in one half
        half_R = np.random.default_rng(self.seed).permutation(len(teacher_R)) % 2
        to_student_ZR = np.zeros(confidence_ZR.shape, dtype=bool)
        thresholds = []
        for half in (0, 1):
            chosen = half_R == half
            threshold = self._threshold(
                confidence_ZR[:, chosen], student_ZR[:, chosen], teacher_R[chosen]
            )
            # applied to the other half alone
            to_student_ZR[:, ~chosen] = confidence_ZR[:, ~chosen] >= threshold
            thresholds.append(round(float(threshold), 4) if np.isfinite(threshold) else None)
        together_ZR = np.where(to_student_ZR, student_ZR, teacher_R[None])
        scores = {"together": together_ZR, "teacher": teacher_R[None]}
        kept = Bootstrap(scores, draws, self.seed).ratio("together", "teacher")
        return {
            "floor": self.floor,
            "share": round(float(to_student_ZR.mean()), 6),
            "score": round(float(together_ZR.mean()), 6),
            "kept": kept and kept.rounded(),
            "thresholds": thresholds,
        }

    def _threshold(self, confidence_ZR: Floats, student_ZR: Floats, teacher_R: Floats) -> float:
        """Return the lowest threshold that keeps the floor; infinite where none does."""
        confidence: NDArray[np.float64] = confidence_ZR.ravel()
        teacher = np.tile(teacher_R, len(confidence_ZR))
        order = np.argsort(-confidence, kind="stable")
        # together[n]: the joint sum where the n + 1 most confident rows go to the student
        together = teacher.sum() + (student_ZR.ravel() - teacher)[order].cumsum()
        # equal confidences lie on one side of a threshold
        last_of_equals = np.append(np.diff(confidence[order]) != 0, True)
        good = np.flatnonzero((together >= self.floor * teacher.sum()) & last_of_equals)
        return float(confidence[order[good[-1]]]) if len(good) else float("inf")


def write_curve(lines: list[dict[str, Any]]) -> None:
    """Write the curve for the report and for DVC's plots."""
    with ROUTER.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["share", "score", "confidence"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
