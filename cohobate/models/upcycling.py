"""Settings of mixtures of experts (cohobate/models/experts.py)."""

from typing import Literal

from pydantic import Field, model_validator

from cohobate.params import Section

DenseExperts = Literal["mean", "most_used"]
"""What becomes of a block's experts in a dense model: their mean, or the one that is used most."""


class Upcycling(Section):
    """Copies of each block's MLP as experts, and a router that chooses among them."""

    experts: int = Field(4, ge=2)
    """Experts of each block."""
    per_token: int = Field(2, ge=2)
    """Experts that read a token. Of a single one the router would get no gradient."""
    seed: int = 0
    """Of the routers' weights."""

    @model_validator(mode="after")
    def _enough_experts(self) -> "Upcycling":
        if self.per_token > self.experts:
            raise ValueError(f"per_token must be at most experts, which are {self.experts}")
        return self
