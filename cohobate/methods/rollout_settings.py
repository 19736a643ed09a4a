"""What a person chooses of on-policy training: how the student answers, and how often it does."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cohobate.generation.requests import Batching, Decoding
from cohobate.params import Section


class ConstantShare(Section):
    """So many of the updates are on-policy, from the first to the last."""

    type: Literal["constant"] = "constant"
    share: float = Field(0.5, ge=0, le=1)
    """λ of GKD: 0 is distillation on given text, 1 learns from the student's own text alone."""

    @property
    def held_out(self) -> int:
        """Rows that are not learnt from, to see the loss on."""
        return 0

    def looks(self, update: int) -> bool:
        """Return whether the share is decided anew before this update."""
        return update == 0

    def after(self, share: float, losses: Sequence[float]) -> float:
        """Return the share of on-policy updates from here on."""
        return self.share


class AdaptiveShare(Section):
    """More and more of them, as often as the loss on held-out rows has risen (DistiLLM, 3.2)."""

    type: Literal["adaptive"] = "adaptive"
    start: float = Field(0.0, ge=0, le=1)
    """φ until the loss has risen."""
    step: float = Field(0.1, gt=0, le=1)
    """What a rise adds to φ."""
    tolerance: float = Field(0.1, ge=0)
    """A loss must be higher by so much than at the look before, to count as a rise."""
    every: int = Field(25, ge=1)
    """Updates between two looks."""
    held_out: int = Field(64, ge=1)
    """Rows that are not learnt from: the loss is the cross-entropy of their answers."""

    def looks(self, update: int) -> bool:
        """Return whether the share is decided anew before this update."""
        return update % self.every == 0

    def after(self, share: float, losses: Sequence[float]) -> float:
        """Return the share of on-policy updates from here on, given the losses of all looks."""
        if len(losses) == 1:
            return self.start
        rose = losses[-1] > losses[-2] + self.tolerance
        return min(1.0, share + self.step) if rose else share


OnPolicySchedule = Annotated[ConstantShare | AdaptiveShare, Field(discriminator="type")]


class TransformersSettings(Section):
    """The model in training."""

    type: Literal["transformers"] = "transformers"


class VllmSettings(Section):
    """vLLM on the trainer's own GPU, given the student's weights before each writing."""

    type: Literal["vllm"]
    memory: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory; training has the rest."""


class Sampling(Section):
    """How the student answers while it is trained."""

    decoding: Decoding = Decoding(max_tokens=64, temperature=1.0)
    batching: Batching = Batching()
    writer: Annotated[TransformersSettings | VllmSettings, Field(discriminator="type")] = (
        TransformersSettings()
    )
    """What computes the answers."""
    replay: int = Field(0, ge=0)
    """Answers of the student that are kept to be learnt from again; 0 keeps none."""
    unfinished: Literal["learn", "mask"] = "learn"
    """What becomes of answers that reach `max_tokens`: each of their tokens is learnt from all the
    same (the teacher's distribution says where to end); or they carry no loss. They are counted."""
