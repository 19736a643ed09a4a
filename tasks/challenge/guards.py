"""What a promotion must not cost, in figures that are the same on every machine."""

from collections.abc import Mapping

from pydantic import Field

from cohobate.params import Section


class Guards(Section):
    """The most that a new student may exceed the champion by, as ratios."""

    parameters: float = Field(1.0, ge=1)
    """Number of parameters: size, and what is read from memory for each token."""
    flops_per_token: float = Field(1.0, ge=1)
    """Work for each token."""
    blocks: float = Field(1.0, ge=1)
    """Blocks of the network: steps that wait for one another. Of two students, one with 12
    blocks and 9 % less work took 1.28 times as long to answer as one with 6 (measured)."""
    bits_per_byte: float = Field(1.5, ge=1)
    """Loss on general text: what it has forgotten of language at large."""

    def growth(
        self, challenger: Mapping[str, float], champion: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the ratios that are guarded, from the figures of both."""
        return {
            name: round(challenger[name] / champion[name], 6) for name in type(self).model_fields
        }

    def broken(self, growth: Mapping[str, float]) -> list[str]:
        """Return a line for each guard that does not hold."""
        return [
            f"{name}: {ratio:.2f} times the champion's, at most {getattr(self, name):.2f} allowed"
            for name, ratio in growth.items()
            if ratio > getattr(self, name)
        ]
