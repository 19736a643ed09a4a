"""Guards: limits on a promoted student's size, work and forgetting; equal on every machine."""

from collections.abc import Mapping

from pydantic import Field

from cohobate.params import Section


class Guards(Section):
    """Largest ratios of the new student's figures to the champion's."""

    parameters: float = Field(1.0, ge=1)
    """Number of parameters."""
    flops_per_token: float = Field(1.0, ge=1)
    """FLOPs of a token."""
    blocks: float = Field(1.0, ge=1)
    """Number of blocks, which run one after another. Measured: a student with 12 blocks and 9 %
    fewer FLOPs took 1.28 times as long to answer as one with 6."""
    bits_per_byte: float = Field(1.5, ge=1)
    """Loss on general text, a measure of forgetting."""

    def growth(
        self, challenger: Mapping[str, float], champion: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the ratios of the figures that both students have."""
        # a classifier has no loss on general text
        names = [n for n in type(self).model_fields if n in challenger and n in champion]
        # a static embedder has no blocks and no products: 0 of both is no growth
        return {name: round((challenger[name] or 1) / (champion[name] or 1), 6) for name in names}

    def broken(self, growth: Mapping[str, float]) -> list[str]:
        """Return a message for each ratio above its limit."""
        return [
            f"{name}: {ratio:.2f} times the champion's, at most {getattr(self, name):.2f} allowed"
            for name, ratio in growth.items()
            if ratio > getattr(self, name)
        ]
