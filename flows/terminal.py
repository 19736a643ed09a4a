"""The round as the terminal shows it: a line a stage, redrawn in place, or plain lines in a log."""

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from flows.placement import StageResult
from flows.watching import StageStarted
from tasks.progress import Advance, Say

_LOOKS = {
    "waiting": ("·", "dim"),
    "ran": ("✓", "green"),
    "restored": ("↺", "cyan"),
    "unchanged": ("=", "dim"),
    "failed": ("✗", "bold red"),
}


@dataclass
class _Line:
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    advance: Advance | None = None
    note: str = ""
    told: set[str] = field(default_factory=set)
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="yellow"))


class RoundOnTerminal:
    """Watches a round (`flows.watching.Watcher`) and draws it."""

    def __init__(self, console: Console, addresses: list[str]) -> None:
        self._console = console
        self._lines = {address: _Line() for address in addresses}
        self._width = max(map(len, addresses), default=0)
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=8)

    def __enter__(self) -> "RoundOnTerminal":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, address: str, event: Any) -> None:
        """Take in one event of the stage at `address`."""
        line = self._lines[address]
        if isinstance(event, StageStarted):
            line.state, line.started = "running", time.monotonic()
        elif isinstance(event, Advance):
            line.advance = event
        elif isinstance(event, Say):
            line.note = event.text
        elif isinstance(event, StageResult):
            line.state, line.seconds = event.outcome, event.seconds
        else:
            line.state, line.seconds = "failed", time.monotonic() - line.started
            line.note = str(event).split("\n", 1)[0].removeprefix(f"{address}: ")
        if not self._console.is_terminal:
            self._log(address, line, event)

    def _log(self, address: str, line: _Line, event: Any) -> None:
        if isinstance(event, StageStarted):
            text = "started"
        elif isinstance(event, StageResult):
            text = f"{event.outcome} in {event.seconds:.1f} s"
        elif isinstance(event, Say):
            text = event.text
        elif isinstance(event, Advance):
            if event.done < event.total or event.what in line.told:
                return
            line.told.add(event.what)
            text = f"{event.what}: {event.done} in {event.seconds:.1f} s"
        else:
            text = f"failed: {line.note}"
        self._console.print(f"{address:<{self._width}}  {text}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1), expand=True)
        for width in (1, self._width, 16):
            table.add_column(width=width, no_wrap=True)
        table.add_column(width=7, justify="right", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")  # it gives way on a narrow one
        for address, line in self._lines.items():
            table.add_row(*self._row(address, line))
        return table

    def _row(self, address: str, line: _Line) -> tuple[Any, ...]:
        if line.state != "running":
            mark, style = _LOOKS[line.state]
            seconds = f"{line.seconds:.1f} s" if line.seconds else ""
            name = Text(address, style="dim" if line.state in ("waiting", "unchanged") else "")
            return (
                Text(mark, style),
                name,
                Text(line.state, style),
                seconds,
                Text(line.note, "dim"),
            )
        seconds = f"{time.monotonic() - line.started:.0f} s"
        bar: Any = Text("starting", style="yellow")
        told = line.note
        if line.advance is not None:
            bar = ProgressBar(total=line.advance.total, completed=line.advance.done, width=16)
            left = line.advance.eta_seconds if line.advance.done else None
            told = f"{line.advance.what} {line.advance.done:,}/{line.advance.total:,}"
            told += f", {left:.0f} s left" if left is not None else ""
            told += f"; {line.advance.note}" if line.advance.note else ""
        return (line.spinner, Text(address, style="bold"), bar, seconds, Text(told))
