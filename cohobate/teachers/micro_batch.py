"""A micro-batch as the student and the sources of its targets read it."""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor


class MicroBatch(NamedTuple):
    """Right-padded rows, and their N completion tokens."""

    ids_BS: Tensor
    positions_N: Tensor
    """Where the completion tokens are predicted, counted through B·S."""
    labels_N: Tensor
    """The completion tokens."""
    teacher_inputs: Mapping[str, Any]
    """What `TargetSource.collate` returned for these rows."""

    @property
    def row_N(self) -> Tensor:  # noqa: N802
        """Number of the row that each completion token belongs to."""
        return self.positions_N // self.ids_BS.shape[1]
