"""How several teachers make one target: one class a way.

To add a way: a class with `weights`, and its name in `Ensemble` at the bottom.

Shapes: B batch, N valid tokens, M teachers, R rows with valid tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.data.examples import Example
    from cohobate.losses.targets import LiveTeacher, TopK
    from cohobate.teachers.target_sources import MicroBatch


class Combination(Section):
    """A way to make one target of several."""

    averages: ClassVar[Literal["probabilities", "logits"]] = "probabilities"
    one_teacher_per_row: ClassVar[bool] = False
    """Whether each row has one teacher: then stored signals serve any divergence."""

    def routes_of(self, rows: Sequence[Example], names: list[str]) -> dict[str, Any]:
        """Return what the loader brings of these rows: by default nothing."""
        return {}

    def weights(
        self, told: Sequence[LiveTeacher | TopK], batch: MicroBatch, shares: Sequence[float]
    ) -> Tensor:
        """Return the weight of each teacher at each valid token, (N, M); by default its share."""
        import torch

        share_T = torch.tensor(shares, device=batch.labels_N.device)
        return (share_T / share_T.sum()).expand(len(batch.labels_N), -1)


class Mixture(Combination):
    """The weighted mean of the teachers' distributions."""

    type: Literal["mixture"] = "mixture"


class MeanLogits(Combination):
    """The weighted mean of the teachers' logits: a normalised geometric mean of distributions."""

    type: Literal["mean_logits"]
    averages: ClassVar[Literal["probabilities", "logits"]] = "logits"


class Route(Combination):
    """Each row goes to the teacher of its group."""

    type: Literal["route"]
    groups: dict[str, str]
    """Group of a row -> name of its teacher; the group `*` stands for every other."""
    one_teacher_per_row: ClassVar[bool] = True

    def routes_of(self, rows: Sequence[Example], names: list[str]) -> dict[str, Any]:
        """Return the number of each row's teacher."""
        import torch

        chosen = [self.groups.get(row.group, self.groups.get("*", "")) for row in rows]
        for row, name in zip(rows, chosen, strict=True):
            if name not in names:
                raise UserError(
                    f"no teacher for the group {row.group!r}",
                    where=f"row {row.key}",
                    fix="add the group, or *, to combine.groups",
                )
        return {"route_B": torch.tensor([names.index(name) for name in chosen])}

    def weights(
        self, told: Sequence[LiveTeacher | TopK], batch: MicroBatch, shares: Sequence[float]
    ) -> Tensor:
        """Return 1 for the teacher of the token's row."""
        from torch.nn.functional import one_hot

        route_N = batch.teacher_inputs["route_B"][batch.row_N]
        return one_hot(route_N, len(told)).float()


class Best(Combination):
    """Each row goes to the teacher that gives the row's own answer the highest likelihood."""

    type: Literal["best"]
    one_teacher_per_row: ClassVar[bool] = True

    def weights(
        self, told: Sequence[LiveTeacher | TopK], batch: MicroBatch, shares: Sequence[float]
    ) -> Tensor:
        """Return 1 for the teacher of the row's lowest loss; the first one where they tie."""
        import torch
        from torch.nn.functional import one_hot

        row_N, rows = batch.row_N, len(batch.ids_BS)
        total_BT = torch.stack(
            [
                torch.zeros(rows, device=row_N.device).index_add_(
                    0, row_N, teacher.label_logp(batch.labels_N, 512).float()
                )
                for teacher in told
            ],
            -1,
        )
        return one_hot(total_BT.argmax(-1)[row_N], len(told)).float()


class Progressive(Section):
    """The target moves from the student's own distribution, as a constant, to the teacher's."""

    start: float = Field(0.1, gt=0, le=1)
    """The teacher's share in the first update."""
    until: float = Field(0.5, gt=0, le=1)
    """Share of the updates after which it is exactly 1; it rises linearly until then."""

    def share(self, progress: float) -> float:
        """Return the teacher's share; `progress` goes from 0, the first update, to 1, the last."""
        done = min(1.0, progress / self.until)
        return 1.0 if done == 1 else self.start + (1 - self.start) * done


Ensemble = Annotated[Mixture | MeanLogits | Route | Best, Field(discriminator="type")]
