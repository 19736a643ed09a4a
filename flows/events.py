"""Who else is told what happens to a round's stages, beside Prefect."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from cohobate.progress import Event
from flows.placement import StageResult


@dataclass(frozen=True)
class StageStarted:
    """A stage was handed to the cluster."""


EventHandler = Callable[[str, Event | StageStarted | StageResult | Exception], None]
"""Told of everything that happens to a stage, by its address."""

event_handler: ContextVar[EventHandler] = ContextVar("watcher", default=lambda address, event: None)
"""The terminal, when a person started the round there; nobody, when a schedule did."""
