"""Ensembles: how several teachers are combined into one target, and progressive targets.

Adding a combination: write a class with `token_weights`, and name it in `Ensemble`.
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
    from cohobate.losses.soft_targets import SoftTargets
    from cohobate.teachers.micro_batch import MicroBatch


class Combination(Section):
    """A way to combine several teachers: the weight of each at every token."""

    average: ClassVar[Literal["probabilities", "logits"]] = "probabilities"
    """What the weights average."""
    one_teacher_per_row: ClassVar[bool] = False
    """Whether each row has one teacher: then stored signals allow every divergence."""

    def collate(self, rows: Sequence[Example], names: list[str]) -> dict[str, Any]:
        """Return what `token_weights` needs of these rows, from the data loader: nothing here."""
        return {}

    def token_weights(
        self, teachers: Sequence[SoftTargets], batch: MicroBatch, teacher_weights: Sequence[float]
    ) -> Tensor:
        """Return the weight of each teacher at each completion token, (N, T); they sum to 1.

        Args:
            teachers: the soft targets of each.
            batch: the micro-batch.
            teacher_weights: the weights in params.yaml, in any scale.
        """
        import torch

        weight_T = torch.tensor(teacher_weights, device=batch.labels_N.device)
        return (weight_T / weight_T.sum()).expand(len(batch.labels_N), -1)


class Mixture(Combination):
    """The weighted mean of the teachers' distributions."""

    type: Literal["mixture"] = "mixture"


class MeanLogits(Combination):
    """The weighted mean of the teachers' logits: a normalised geometric mean of distributions."""

    type: Literal["mean_logits"]
    average: ClassVar[Literal["probabilities", "logits"]] = "logits"


class Route(Combination):
    """Each row goes to the teacher of its group, or of its task."""

    type: Literal["route"]
    groups: dict[str, str]
    """Group of a row, or its task where a round has several sources, -> name of its teacher. A
    group goes before a task, and `*` stands for all other rows."""
    one_teacher_per_row: ClassVar[bool] = True

    def collate(self, rows: Sequence[Example], names: list[str]) -> dict[str, Any]:
        """Return the number of each row's teacher."""
        import torch

        chosen = [self._teacher_of(row) for row in rows]
        for row, name in zip(rows, chosen, strict=True):
            if name not in names:
                raise UserError(
                    f"no teacher for the group {row.group!r}",
                    where=f"row {row.key}",
                    fix="add the group, or *, to combine.groups",
                )
        return {"route_B": torch.tensor([names.index(name) for name in chosen])}

    def _teacher_of(self, row: Example) -> str:
        names = (self.groups.get(name) for name in (row.group, row.task, "*"))
        return next((name for name in names if name), "")

    def token_weights(
        self, teachers: Sequence[SoftTargets], batch: MicroBatch, teacher_weights: Sequence[float]
    ) -> Tensor:
        """Return 1 for the teacher of the token's row."""
        from torch.nn.functional import one_hot

        route_N = batch.teacher_inputs["route_B"][batch.row_N]
        return one_hot(route_N, len(teachers)).float()


class Best(Combination):
    """Each row goes to the teacher that gives the row's answer the highest likelihood."""

    type: Literal["best"]
    one_teacher_per_row: ClassVar[bool] = True

    def token_weights(
        self, teachers: Sequence[SoftTargets], batch: MicroBatch, teacher_weights: Sequence[float]
    ) -> Tensor:
        """Return 1 for the teacher of the row's highest likelihood; of equals the first."""
        import torch
        from torch.nn.functional import one_hot

        row_N, rows = batch.row_N, len(batch.ids_BS)
        # log p of each row's answer under each teacher: the sum over its tokens
        total_BT = torch.stack(
            [
                torch.zeros(rows, device=row_N.device).index_add_(
                    0, row_N, teacher.label_logprobs(batch.labels_N, chunk_tokens=512).float()
                )
                for teacher in teachers
            ],
            -1,
        )
        return one_hot(total_BT.argmax(-1)[row_N], len(teachers)).float()


class Progressive(Section):
    """Progressive targets: from the student's own distribution, detached, to the teacher's."""

    start: float = Field(0.1, gt=0, le=1)
    """The teacher's share in the first update."""
    until: float = Field(0.5, gt=0, le=1)
    """Share of the updates after which it is exactly 1; it rises linearly until then."""

    def teacher_share(self, progress: float) -> float:
        """Return the teacher's share; `progress` goes from 0, the first update, to 1, the last."""
        done = min(1.0, progress / self.until)
        return 1.0 if done == 1 else self.start + (1 - self.start) * done


Ensemble = Annotated[Mixture | MeanLogits | Route | Best, Field(discriminator="type")]
