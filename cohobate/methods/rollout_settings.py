"""Settings of on-policy training: how the student generates, and in which share of the updates."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from cohobate.generation.requests import Batching, Decoding
from cohobate.params import Section


class ConstantShare(Section):
    """A constant share of on-policy updates."""

    type: Literal["constant"] = "constant"
    share: float = Field(0.5, ge=0, le=1)
    """λ of GKD: 0 is distillation on given text, 1 learns from the student's own text alone."""

    @property
    def held_out(self) -> int:
        """Number of rows that are held out of training, to measure the loss on."""
        return 0

    def is_due(self, update: int) -> bool:
        """Return whether the share is decided anew before this update."""
        return update == 0

    def next_share(self, share: float, losses: Sequence[float]) -> float:
        """Return the share of on-policy updates from here on."""
        return self.share


class AdaptiveShare(Section):
    """A share that grows each time the loss on held-out rows has risen (DistiLLM, section 3.2)."""

    type: Literal["adaptive"] = "adaptive"
    start: float = Field(0.0, ge=0, le=1)
    """φ at first."""
    step: float = Field(0.1, gt=0, le=1)
    """What a rise adds to φ."""
    tolerance: float = Field(0.1, ge=0)
    """How much higher than at the previous check a loss must be to count as a rise."""
    every: int = Field(25, ge=1)
    """Updates between two checks."""
    held_out: int = Field(64, ge=1)
    """Rows held out of training: the loss is the cross-entropy of their answers."""

    def is_due(self, update: int) -> bool:
        """Return whether the share is decided anew before this update."""
        return update % self.every == 0

    def next_share(self, share: float, losses: Sequence[float]) -> float:
        """Return the share of on-policy updates from here on, given the held-out losses so far."""
        # the first check has no loss to compare with
        if len(losses) == 1:
            return self.start
        rose = losses[-1] > losses[-2] + self.tolerance
        return min(1.0, share + self.step) if rose else share


OnPolicySchedule = Annotated[ConstantShare | AdaptiveShare, Field(discriminator="type")]


class TransformersSettings(Section):
    """Batched decoding with the model in training."""

    type: Literal["transformers"] = "transformers"


class VllmSettings(Section):
    """vLLM on the trainer's own GPU; the student's weights are copied to it before each use."""

    type: Literal["vllm"]
    memory: float = Field(0.3, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes; training has the rest."""


class Sampling(Section):
    """How the student generates answers while it is trained."""

    decoding: Decoding = Decoding(max_tokens=64, temperature=1.0)
    batching: Batching = Batching()
    writer: Annotated[TransformersSettings | VllmSettings, Field(discriminator="type")] = (
        TransformersSettings()
    )
    """What generates the answers."""
    replay: int = Field(0, ge=0)
    """Size of the replay buffer, in answers; 0: no buffer."""
    # left out of params where it is the default: earlier runs resume
    candidates: int = Field(0, ge=0, exclude_if=lambda count: not count)
    """K: request from a teacher behind vLLM (`scoring: vllm`) the log-probabilities of the
    student's K likeliest ids at each token of its answers. 0: those of the teacher's likeliest."""
    unfinished: Literal["learn", "mask"] = "learn"
    """Answers that reach `max_tokens`. learn: all their tokens carry a loss (the teacher's
    distribution shows where to end). mask: none does. They are counted either way."""
