"""Display of a round on a terminal: a line per stage, redrawn in place, or plain log lines."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cohobate.progress import Advance, CurvePoints, DevScore, Say
from cohobate.terminal import StageLog, capture_terminal
from flows.events import StageStarted
from flows.placement import StageResult

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
    spinner: Spinner = field(default_factory=lambda: Spinner("dots", style="yellow"))


class RoundOnTerminal:
    """A `flows.events.EventHandler` that draws a round on a terminal, or writes a log."""

    def __init__(self, console: Console, addresses: list[str]) -> None:
        self._console = console
        self._lines = {address: _Line() for address in addresses}
        self._width = max(map(len, addresses), default=0)
        self._logs: dict[str, StageLog] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "RoundOnTerminal":
        if self._console.is_terminal:
            terminal = self._stack.enter_context(capture_terminal(self._print))
            self._console = Console(file=terminal, force_terminal=True, soft_wrap=True)
            self._stack.enter_context(
                Live(
                    get_renderable=self._table,
                    console=self._console,
                    refresh_per_second=8,
                    redirect_stdout=False,  # what libraries write is captured below Python
                    redirect_stderr=False,
                )
            )
        return self

    def __exit__(self, *exception: object) -> None:
        for log in self._logs.values():
            log.__exit__()
        self._stack.close()

    def __call__(self, address: str, event: Any) -> None:
        """Show one event of the stage at `address`."""
        if isinstance(event, CurvePoints):
            return
        line = self._lines[address]
        if isinstance(event, StageStarted):
            line.state, line.started = "running", time.monotonic()
        elif isinstance(event, Advance):
            line.advance = event
        elif isinstance(event, Say | DevScore):
            line.note = str(event)
        elif isinstance(event, StageResult):
            line.state, line.seconds = event.outcome, event.seconds
        else:
            line.state, line.seconds = "failed", time.monotonic() - line.started
            line.note = str(event).split("\n", 1)[0].removeprefix(f"{address}: ")
        if not self._console.is_terminal:
            self._log(address, line, event)

    def _log(self, address: str, line: _Line, event: Any) -> None:
        def write(text: str) -> None:
            self._print(f"{address:<{self._width}}  {text}")

        if isinstance(event, StageStarted):
            write("started")
            self._logs[address] = StageLog(write)
        elif isinstance(event, Advance | Say | DevScore):
            if log := self._logs.get(address):
                log(event)
        else:
            if address in self._logs:
                self._logs.pop(address).__exit__()
            took = f"{line.seconds:.1f} s"
            write(f"{line.state} in {took}" if line.state != "failed" else f"failed: {line.note}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)

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
        status = line.note
        if line.advance is not None:
            bar = ProgressBar(total=line.advance.total, completed=line.advance.done, width=16)
            status = str(line.advance)
        return (line.spinner, Text(address, style="bold"), bar, seconds, Text(status))
