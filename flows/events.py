"""Events of a round's stages for a handler beside Prefect, such as the terminal's display."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from cohobate.progress import Event
from flows.placement import StageResult


@dataclass(frozen=True)
class StageStarted:
    """A stage was handed to the cluster."""


EventHandler = Callable[[str, Event | StageStarted | StageResult | Exception], None]
"""Called with the address of a stage and each of its events."""

event_handler: ContextVar[EventHandler] = ContextVar("watcher", default=lambda address, event: None)
"""The terminal's display where a person started the round; by default, nothing."""
