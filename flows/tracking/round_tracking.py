"""What the driver of a round tells its trackers: `tracked`.

Everything goes to a process for each tracker, through a thread and a pipe: nothing here waits for a
tracker but the end of the round, for a few seconds.
"""

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from prefect import runtime

import flows
from cohobate import params
from cohobate.errors import UserError
from cohobate.progress import CurvePoints
from flows import recipes
from flows.events import EventHandler, event_handler
from flows.git import git
from flows.placement import StageResult
from flows.tracking import trackers
from flows.tracking.client import RoundOutputs, TrackedRun, numbers
from flows.tracking.trackers import TrackerName
from tasks.evaluate.report.round_files import RoundFiles

CLOSE_SECONDS = 10.0
"""So long the end of a round waits for its trackers, which then go on by themselves."""
_NAME_LENGTH = 120
"""Longest name of a run: Weights & Biases takes 128 characters, a folder 255 bytes."""
_CODE = Path(flows.__file__).parents[1]


@contextmanager
def tracked(
    root: Path, document: Mapping[str, Any], log: Callable[[str], None]
) -> "Iterator[RoundTracking]":
    """Send what happens in the block to the trackers that params.yaml names; without any, nothing.

    Args:
        root: The round's folder.
        document: Its params.yaml.
        log: Writes a line: that a tracker does not work.

    Raises:
        UserError: a tracker's package is not installed, or the environment says too little.
    """
    names = trackers.named_in(document)
    trackers.check(names)
    tracking = RoundTracking(root, log)
    with _suppressed(log):
        tracking.open(names, document)
    token = event_handler.set(tracking.handler(event_handler.get()))
    succeeded = False
    try:
        yield tracking
        succeeded = True
    finally:
        event_handler.reset(token)
        with _suppressed(log):
            tracking.close(succeeded=succeeded)


@contextmanager
def _suppressed(log: Callable[[str], None]) -> Iterator[None]:
    """Let nothing that goes wrong with trackers stop a round."""
    try:
        yield
    except Exception as error:
        log(f"trackers: {type(error).__name__}: {error}")


def project_of(root: Path) -> Path:
    """Return the project's folder of a round, which may run in a worktree below it."""
    shared = _git(root, "--path-format=absolute", "--git-common-dir")
    prefix = _git(root, "--show-prefix")
    folder = Path(shared).parent / prefix if shared else root
    return folder if folder.is_dir() else root


def _git(root: Path, *words: str) -> str:
    """Return what git knows of a folder; nothing where it is in no repository."""
    try:
        return git(root, "rev-parse", *words, check=False)
    except UserError:
        return ""


class RoundTracking:
    """One round in its trackers."""

    def __init__(self, root: Path, log: Callable[[str], None]) -> None:
        self.root, self._log = root, log
        self._processes: list[TrackerProcess] = []
        self._first: dict[str, int] = {}
        """The first update of each training run whose points were sent."""

    def open(self, names: Sequence[TrackerName], document: Mapping[str, Any]) -> None:
        """Start the trackers' processes, and begin a run in each, named as Prefect's."""
        if not names:
            return
        folder = project_of(self.root)
        self._processes = [TrackerProcess(one, folder, self._log) for one in names]
        kept = {key: value for key, value in document.items() if key not in ("track", "recipe")}
        tags = {
            "commit": _git(self.root, "HEAD"),
            "folder": str(self.root),
            "recipe": " ".join(recipes.files_of(document)),
            "prefect run": runtime.flow_run.id or "",
        }
        tags = {key: value for key, value in tags.items() if value}
        name = (runtime.flow_run.name or "round")[:_NAME_LENGTH]
        self._send("open", run=asdict(TrackedRun(name, kept, tags)))

    def handler(self, also: EventHandler) -> EventHandler:
        """Return a handler of a round's events that tells the trackers, and then `also`."""
        if not self._processes:
            return also

        def handle(address: str, event: Any) -> None:
            with _suppressed(self._log):
                if isinstance(event, CurvePoints):
                    self.add_points(event.run, event.points)
                elif isinstance(event, StageResult):
                    self.add_stage(address, event)
            also(address, event)

        return handle

    def add_points(self, curve: str, points: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Send points of a training run; figures that are no finite number are left out."""
        if points:
            self._first.setdefault(curve, points[0][0])
            lines = [(step, numbers(figures)) for step, figures in points]
            self._send("points", curve=curve, points=lines)

    def add_stage(self, address: str, result: StageResult) -> None:
        """Send the figures of a stage's summary, and its time where it ran."""
        stage = address.replace("@", ".")
        figures = numbers(result.figures, f"{stage}/")
        if result.outcome == "ran":
            figures[f"{stage}/seconds"] = round(result.seconds, 1)
        self._send("figures", figures=figures)

    def add_scores(self) -> None:
        """Send what an evaluated round has beside its stages: scores, and curves not drawn yet."""
        if not self._processes:
            return
        with _suppressed(self._log):
            files = RoundFiles(self.root)
            drawn = dict(self._first)
            for phase, seeds in files.losses.items():
                for seed, lines in seeds.items():
                    # of a phase that was restored, or that went on from a checkpoint
                    curve = f"{phase}/seed-{seed}"
                    before = drawn.get(curve, math.inf)
                    points = [(int(line["step"]), {"loss": line["loss"]}) for line in lines]
                    for check in files.dev.get(phase, {}).get(seed, ()):
                        name = "dev/score" if check.is_score else "dev/loss"
                        points.append((check.update, {name: check.value}))
                    self.add_points(curve, [one for one in points if one[0] < before])
            self._send("figures", figures=numbers(files.metrics, "scores/"))

    def close(self, *, succeeded: bool) -> None:
        """Send where the outputs are, and end the run."""
        if not self._processes:
            return
        report = self.root / "reports/report.html"
        outputs = RoundOutputs(outputs_text(self.root), str(report) if report.exists() else "")
        self._send("outputs", outputs=asdict(outputs))
        self._send("close", succeeded=succeeded)
        for process in self._processes:
            process.finish()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self._processes:
            process.wait(deadline - time.monotonic())

    def _send(self, kind: str, **content: Any) -> None:
        for process in self._processes:
            process.send({"kind": kind, **content})


def outputs_text(root: Path) -> str:
    """Return Markdown with the report's path, and path and DVC hash of every output."""
    lock = root / "dvc.lock"
    stages = (params.parse(lock.read_text("utf-8"), str(lock)) if lock.exists() else {}).get(
        "stages", {}
    )
    rows = [
        f"| {address} | `{out['path']}` | `{out.get('md5', '')}` |"
        for address, stage in stages.items()
        for out in stage.get("outs", [])
    ]
    report = f"Report: `{root / 'reports/report.html'}`\n\n"
    return report + "| stage | output | DVC's MD5 |\n|---|---|---|\n" + "\n".join(rows)


class TrackerProcess:
    """The process of a tracker, as the driver has it."""

    def __init__(self, name: TrackerName, folder: Path, log: Callable[[str], None]) -> None:
        self._name, self._log, self._works = name, log, True
        path = os.pathsep.join(filter(None, [str(_CODE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flows.tracking.tracker_process", name],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # it may end its clients' processes with itself
        )
        self._messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        assert self._process.stdin and self._process.stdout
        for work, stream in (
            (self._write, self._process.stdin),
            (self._read, self._process.stdout),
        ):
            threading.Thread(target=work, args=(stream,), daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, without waiting."""
        self._messages.put(message)

    def _write(self, stream: IO[str]) -> None:
        # the process is gone: its reader says so
        with suppress(OSError), stream:
            while (message := self._messages.get()) is not None:
                stream.write(json.dumps(message, default=str) + "\n")
                stream.flush()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            state = json.loads(line)
            self._works = "error" not in state
            if self._works:
                self._log(f"{self._name} works again")
            else:
                self._log(f"{self._name} does not work, the round goes on: {state['error']}")

    def finish(self) -> None:
        """Let the process end once all is sent."""
        self._messages.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for its end; after some seconds let it end by itself."""
        deadline = time.monotonic() + seconds
        while (code := self._process.poll()) is None:
            # what does not work is not waited for
            if not self._works or time.monotonic() > deadline:
                self._log(f"{self._name} has not taken everything: it goes on by itself")
                return
            time.sleep(0.05)
        if code:
            self._log(f"{self._name}: its process ended with exit code {code}")
