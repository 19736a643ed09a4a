"""Memory of one stage on its device, and the smaller batch with which it fits."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from cohobate.training.memory_check import check_memory
from tasks.preflight.devices import Device
from tasks.preflight.inference_memory import Parts
from tasks.preflight.phases import PHASES
from tasks.preflight.smallest_change import Changes, as_settings

_SMALLEST = 64
"""Tokens of the smallest batch that is proposed."""


@dataclass(frozen=True)
class StageMemory:
    """What one worker of a stage takes of its device."""

    stage: str
    """Its address, such as `train@kd`."""
    parts: Parts
    """Bytes at the peak, with rows of `max_tokens`."""
    short: Parts
    """The same with rows of 32 tokens."""
    device: Device
    workers: int = 1
    fix: str = ""
    """Options of `cohobate run` with which it fits; empty where it does, or nothing helps."""

    @property
    def total(self) -> int:
        """Bytes of all parts together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool | None:
        """Whether rows of `max_tokens` fit; None where the device's memory is not known."""
        return None if self.device.available is None else self.total <= self.device.available

    @property
    def fits_short(self) -> bool:
        """Whether short rows fit, as far as is known."""
        return self.device.available is None or sum(self.short.values()) <= self.device.available

    def check(self) -> None:
        """Refuse a stage that does not fit even with short rows.

        Raises:
            UserError: with the smallest change that would fit.
        """
        if self.device.available is None:
            return
        section, _, key = self.stage.partition("@")
        where = "params.yaml, " + (f"{section}.{key}" if section in PHASES else section)
        fix = f"cohobate run {self.fix}" if self.fix else ""
        check_memory(self.stage, self.short, self.device.available, where=where, fix=fix)


def with_smaller_batch(
    estimate: StageMemory,
    tokens: int,
    parts: Callable[[int], Parts],
    changes: Callable[[int], Changes],
) -> StageMemory:
    """Return the memory of a stage of frozen models, with the largest batch that fits as its fix.

    Args:
        estimate: of its batch as it is.
        tokens: of that batch.
        parts: the memory with so many tokens at once.
        changes: of the stage's section, for so many.
    """
    if estimate.fits is not False:
        return estimate
    section, available = estimate.stage.partition("@")[0], estimate.device.available or 0
    while tokens > _SMALLEST:
        tokens //= 2
        if sum(parts(tokens).values()) <= available:
            return replace(estimate, fix=as_settings(section, changes(tokens)))
    return estimate
