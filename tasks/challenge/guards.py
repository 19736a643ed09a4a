"""What a promotion must not cost, in figures that are the same on every machine."""

from pydantic import Field

from tasks.evaluate.efficiency import Footprint
from tasks.params import Section


class Guards(Section):
    """The most that a new student may exceed the champion by, as ratios."""

    parameters: float = Field(1.0, ge=1)
    """Number of parameters."""
    flops_per_token: float = Field(1.0, ge=1)
    """Work for each token. Stands for latency, which differs from run to run and so has no place
    in a verdict that must come out the same."""

    def growth(self, challenger: Footprint, champion: Footprint) -> dict[str, float]:
        """Return the ratios that are guarded."""
        return {
            name: round(getattr(challenger, name) / getattr(champion, name), 6)
            for name in type(self).model_fields
        }

    def broken(self, growth: dict[str, float]) -> list[str]:
        """Return a line for each guard that does not hold."""
        return [
            f"{name}: {ratio:.2f} times the champion's, at most {getattr(self, name):.2f} allowed"
            for name, ratio in growth.items()
            if ratio > getattr(self, name)
        ]
