"""The process of one tracker: `python -m flows.tracking.tracker_process mlflow`.

It reads messages of `RoundTracking` as lines of JSON on stdin, and writes a line to stdout when the
tracker stops working, and when it works again. It never holds up the round: what a tracker does not
take waits here. Once stdin is closed it has five minutes to send the rest.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from typing import IO, Any

from flows.tracking.client import RoundOutputs, TrackedRun, TrackerClient
from flows.tracking.trackers import TRACKERS

RETRY_SECONDS = 15.0
TRIES = 8
"""A message that fails so often is left out: the tracker may refuse this one alone."""
LAST_SECONDS = 300.0
_MOST_WAITING = 20_000
"""Messages that wait for a tracker that is away; of more the oldest are left out."""


def main() -> None:
    """Serve one tracker until stdin is closed and all is sent, or five minutes have passed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the round's: it closes stdin
    sys.modules["torch"] = None  # type: ignore[assignment]  # clients load it: seconds, and memory
    # libraries print: stdout is for lines to the round alone
    to_round = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123
    tracker = TRACKERS[sys.argv[1]]()  # type: ignore[index]
    relay = Relay(tracker, lambda line: print(line, file=to_round, flush=True))
    threading.Thread(target=relay.read, args=(sys.stdin,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):  # the round is gone, and reads no line
        relay.run()
    os._exit(0)  # clients have threads, and handlers at exit, that may wait for a service


class Relay:
    """Passes messages on to a tracker, in order; repeats what fails."""

    def __init__(self, tracker: TrackerClient, report: Callable[[str], None]) -> None:
        self._tracker, self._report = tracker, report
        self._waiting: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._ended = threading.Event()
        self._failed = False

    def read(self, lines: IO[str]) -> None:
        """Take in messages until the round closes the pipe."""
        closed = False
        for line in lines:
            message = json.loads(line)
            closed = closed or message["kind"] == "close"
            self._waiting.put(message)
            if self._waiting.qsize() > _MOST_WAITING:
                self._waiting.get_nowait()
        if not closed:  # the round was killed
            self._waiting.put({"kind": "close", "succeeded": False})
        self._waiting.put(None)
        self._ended.set()
        threading.Timer(LAST_SECONDS, _kill_all).start()

    def run(self) -> None:
        """Pass on every message."""
        while (message := self._waiting.get()) is not None:
            self._deliver(message)

    def _deliver(self, message: dict[str, Any]) -> None:
        for attempt in count(1):
            was_last = self._ended.is_set()
            try:
                deliver(self._tracker, message)
            except Exception as error:  # each tracker has errors of its own
                self._note_failure(error)
            else:
                self._note_success()
                return
            if message["kind"] != "open" and (was_last or attempt >= TRIES):
                return
            # without a run no other message can be sent: it is tried to the end
            if self._ended.wait(RETRY_SECONDS):
                time.sleep(1)

    def _note_success(self) -> None:
        if self._failed:
            self._report(json.dumps({"works": True}))
        self._failed = False

    def _note_failure(self, error: Exception) -> None:
        if not self._failed:
            reason = " ".join(str(error).split())[:200]
            self._report(json.dumps({"error": f"{type(error).__name__}: {reason}"}))
        self._failed = True


def deliver(tracker: TrackerClient, message: dict[str, Any]) -> None:
    """Pass one message on to a tracker."""
    match message:
        case {"kind": "open", "run": run}:
            tracker.open(TrackedRun(**run))
        case {"kind": "points", "curve": curve, "points": points}:
            tracker.add_points(curve, [(step, figures) for step, figures in points])
        case {"kind": "figures", "figures": figures}:
            tracker.add_figures(figures)
        case {"kind": "outputs", "outputs": outputs}:
            tracker.add_outputs(RoundOutputs(**outputs))
        case {"kind": "close", "succeeded": succeeded}:
            tracker.close(succeeded)


def _kill_all() -> None:
    """End this process and those of its client; they are a process group of their own."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
