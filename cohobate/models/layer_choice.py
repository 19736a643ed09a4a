"""Which of a model's layers are kept: positions, or so many of them evenly spaced."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section


class Uniform(Section):
    """So many layers, evenly spaced, the first and the last among them."""

    uniform: int = Field(ge=1)
    """Number of layers."""

    def of(self, depth: int) -> list[int]:
        """Return the positions of the layers in a model of `depth` layers."""
        if self.uniform == 1:
            return [depth - 1]
        return [round(n * (depth - 1) / (self.uniform - 1)) for n in range(self.uniform)]


Layers = Annotated[tuple[int, ...], Field(min_length=1)] | Uniform
"""Positions of the layers, from 0 and in this order, or `{uniform: n}`."""


def layer_positions(layers: Layers, depth: int, where: str) -> list[int]:
    """Return the positions of the layers to keep of a model of `depth` layers.

    Raises:
        UserError: the model has no such layer, or one is named twice.
    """
    positions: Sequence[int] = layers.of(depth) if isinstance(layers, Uniform) else layers
    wrong = [n for n in positions if not 0 <= n < depth]
    if wrong or len(set(positions)) < len(positions):
        raise UserError(
            f"the model has {depth} layers (0 to {depth - 1}): cannot take {wrong or [*positions]}",
            where=f"params.yaml, {where}",
        )
    return list(positions)
