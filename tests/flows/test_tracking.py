"""Trackers of a round: what each gets, and that none can hold a round up."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.errors import UserError
from cohobate.params import ParamsError
from cohobate.progress import CurvePoints
from flows import params_schema
from flows.events import event_handler
from flows.placement import StageResult
from flows.tracking import round_tracking, tracker_process, trackers
from flows.tracking.client import RoundOutputs, TrackedRun, TrackerClient
from flows.tracking.tracker_process import Relay
from tests.tiny_project import ROOT

RECORD = """
import json, os

def record(*call):
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps(call, default=str) + "\\n")
"""
STAND_INS = {
    "mlflow/__init__.py": """
from types import SimpleNamespace as Some

from stand_in import record

class MlflowClient:
    def get_experiment_by_name(self, name): record("mlflow experiment", name)
    def create_experiment(self, name): return "7"
    def create_run(self, number, tags, run_name):
        record("mlflow run", number, run_name, tags)
        return Some(info=Some(run_id="r"))
    def log_batch(self, run, params=(), metrics=()): record("mlflow", dict(params), [*metrics])
    def set_tag(self, run, name, text): record("mlflow tag", name, text)
    def log_artifact(self, run, path): record("mlflow artifact", path)
    def set_terminated(self, run, state): record("mlflow end", state)
""",
    "mlflow/entities.py": """
def Metric(name, value, time, step): return (name, value, step)
def Param(name, value): return (name, value)
""",
    "mlflow/utils/time.py": "get_current_time_millis = lambda: 1\n",
    "wandb.py": """
from stand_in import record

class Run:
    def __init__(self): self.summary = Summary()
    def define_metric(self, name, **options): record("wandb axis", name, options)
    def log(self, values): record("wandb", values)
    def finish(self, exit_code): record("wandb end", exit_code, self.notes)

class Summary(dict):
    def update(self, figures): record("wandb summary", figures)

def Settings(**options): return options
def Html(page, inject): return page
def init(**options):
    record("wandb run", options)
    return Run()
""",
    "trackio.py": """
from stand_in import record

class Run:
    def log(self, values, step): record("trackio", values, step)
    def finish(self): record("trackio end")

def Markdown(text): return text
def init(project, **options):
    record("trackio run", project, options)
    return Run()
""",
}
DOCUMENT = {"seeds": [1], "train": {"kd": {"updates": 2}}, "recipe": {"file": "recipes/x.yaml"}}
LOCK = """\
schema: '2.0'
stages:
  train@kd:
    outs:
    - {path: models/train/kd, md5: 0123.dir}
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand-ins of the clients, in the trackers' processes: they write each call to this file."""
    clients = tmp_path / "clients"
    for name, text in STAND_INS.items() | {("stand_in.py", RECORD)}:
        (clients / name).parent.mkdir(parents=True, exist_ok=True)
        (clients / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(clients))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    yield tmp_path / "calls"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "data/evaluate/losses").mkdir(parents=True)
    (root / "reports").mkdir()
    (root / "dvc.lock").write_text(LOCK)
    (root / "reports/metrics.json").write_text('{"student": {"score": 0.75}, "metric": "verifier"}')
    (root / "reports/report.html").write_text("<p>report</p>")
    for phase in ("kd", "baseline"):
        (root / f"data/evaluate/losses/{phase}-seed-1.csv").write_text(
            "step,loss,learning_rate,stage\n1,3.5,0.1,0\n2,2.5,0.1,0\n"
        )
    (root / "data/evaluate/dev").mkdir()
    (root / "data/evaluate/dev/baseline-seed-1.csv").write_text(
        "update,score,loss,length,finished\n2,0.61,1.2,2,1\n"
    )
    return root


def result(**figures: Any) -> StageResult:
    return StageResult("ran", 3.21, 3.0, 0, 1, figures)


def a_round(root: Path, names: list[str], log: list[str]) -> list[Any]:
    """A round whose phase kd goes on after its first update; returns what its terminal shows."""
    shown: list[Any] = []
    token = event_handler.set(lambda address, event: shown.append(event))
    with round_tracking.tracked(root, DOCUMENT | {"track": names}, log.append) as tracking:
        handle = event_handler.get()
        handle("train@kd", CurvePoints("kd/seed-1", ((2, {"loss": 2.5, "terms/hard": 0.5}),)))
        handle("train@kd", result(rows=40, metric="verifier", worst=float("nan")))
        tracking.add_scores()
    event_handler.reset(token)
    return shown


def test_every_tracker_gets_the_whole_round(
    root: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_tracking, "CLOSE_SECONDS", 60)  # of a busy machine
    log: list[str] = []
    shown = a_round(root, ["tensorboard", "mlflow", "wandb", "trackio"], log)
    assert log == []
    assert len(shown) == 2  # the terminal has its events as without trackers
    done = [json.loads(line) for line in calls.read_text().splitlines()]
    of_mlflow = [call for call in done if call[0] == "mlflow"]
    assert of_mlflow[0][1] == {"seeds": "[1]", "train.kd.updates": "2"}
    metrics = [tuple(metric) for call in of_mlflow for metric in call[2]]
    assert metrics[:2] == [("kd/seed-1/loss", 2.5, 2), ("kd/seed-1/terms/hard", 0.5, 2)]
    assert {("train.kd/rows", 40.0, 0), ("train.kd/seconds", 3.2, 0)} < {*metrics}
    # what was not drawn while it trained: a restored phase, and updates before a checkpoint
    restored = {("baseline/seed-1/loss", loss, step) for step, loss in ((1, 3.5), (2, 2.5))}
    assert restored | {("kd/seed-1/loss", 3.5, 1)} < {*metrics}
    assert ("baseline/seed-1/dev/score", 0.61, 2) in metrics
    assert len(metrics) == len({*metrics})
    assert ("scores/student.score", 0.75, 0) in metrics
    ends = {call[0]: call[1:] for call in done}
    assert ends["mlflow run"][:2] == ["7", "round"]
    assert ends["mlflow run"][2]["recipe"] == "recipes/x.yaml"
    assert "| train@kd | `models/train/kd` | `0123.dir` |" in ends["mlflow tag"][1]
    assert ends["mlflow artifact"] == [str(root / "reports/report.html")]
    assert ends["mlflow end"] == ["FINISHED"]
    assert ends["wandb end"][0] == 0
    assert "0123.dir" in ends["wandb end"][1]
    of_curve = {"loss": 2.5, "terms/hard": 0.5, "update": 2}
    assert ["wandb", {f"kd/seed-1/{name}": value for name, value in of_curve.items()}] in done
    assert ["wandb summary", {"scores/student.score": 0.75}] in done
    assert ["trackio", {"scores/student.score": 0.75}, 0] in done
    assert "trackio end" in ends
    assert scalars(root / "reports/trackers/tensorboard/round") == {
        ("train.kd/rows", 0, 40.0), ("train.kd/seconds", 0, 3.2), ("scores/student.score", 0, 0.75)
    }  # fmt: skip
    assert ("loss", 2, 2.5) in scalars(root / "reports/trackers/tensorboard/round/kd-seed-1")


def scalars(folder: Path) -> set[tuple[str, int, float]]:
    """The points of a folder's event file."""
    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events*")
    data, points = path.read_bytes(), set()
    while data:  # length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        points |= {
            (value.tag, event.step, round(value.simple_value, 4))
            for value in event.summary.value
            if value.HasField("simple_value")
        }
        data = data[16 + length :]
    return points


def test_a_tracker_that_is_down_costs_a_line(
    root: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Path(os.environ["PYTHONPATH"]) / "mlflow/__init__.py"
    client.write_text("raise ConnectionError('no server\\n at this address')\n")
    monkeypatch.setattr(round_tracking, "CLOSE_SECONDS", 30)
    log: list[str] = []
    began = time.monotonic()
    a_round(root, ["mlflow", "trackio"], log)
    assert log[0] == (
        "mlflow does not work, the round goes on: ConnectionError: no server at this address"
    )
    assert time.monotonic() - began < round_tracking.CLOSE_SECONDS + 5
    assert "trackio end" in calls.read_text()


def test_a_failed_round_ends_its_run_as_failed(root: Path, calls: Path) -> None:
    with (
        pytest.raises(UserError, match="a stage failed"),
        round_tracking.tracked(root, {"track": ["mlflow"]}, print),
    ):
        raise UserError("a stage failed")
    assert '["mlflow end", "FAILED"]' in calls.read_text()


class Unsteady(TrackerClient):
    """Fails at the first attempt of each call."""

    package = ""

    def __init__(self) -> None:
        self.tried, self.calls = set[str](), list[Any]()

    def _call(self, *call: Any) -> None:
        if str(call) not in self.tried:
            self.tried.add(str(call))
            raise OSError("away")
        self.calls.append(call)

    def open(self, run: TrackedRun) -> None:
        self._call("open", run.name)

    def add_points(self, curve: str, points: Any) -> None:
        self._call(curve, points)

    def add_figures(self, figures: Any) -> None:
        raise ValueError("never takes it")

    def add_outputs(self, outputs: RoundOutputs) -> None:
        self._call(outputs.text)

    def close(self, succeeded: bool) -> None:
        self._call(succeeded)


def test_what_fails_is_sent_again_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_process, "RETRY_SECONDS", 0)
    tracker, lines = Unsteady(), list[str]()
    relay = Relay(tracker, lines.append)
    messages = [
        {"kind": "open", "run": {"name": "round", "params": {}}},
        {"kind": "figures", "figures": {"a": 1.0}},
        {"kind": "points", "curve": "kd/seed-1", "points": [[1, {"loss": 2.0}]]},
    ]
    for message in messages:
        relay._waiting.put(message)
    relay._waiting.put(None)
    relay.run()
    assert tracker.calls == [("open", "round"), ("kd/seed-1", [(1, {"loss": 2.0})])]
    assert lines[:3] == ['{"error": "OSError: away"}', '{"works": true}',
                         '{"error": "ValueError: never takes it"}']  # fmt: skip


def test_a_killed_round_ends_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Timer.start", lambda timer: None)
    tracker = Unsteady()
    tracker.tried |= {str(("open", "round")), str((False,))}
    relay = Relay(tracker, print)
    run = {"name": "round", "params": {}}
    relay.read(io.StringIO(json.dumps({"kind": "open", "run": run}) + "\n"))
    relay.run()
    assert tracker.calls == [("open", "round"), (False,)]


def test_what_cannot_work_is_refused_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("mlflow", "wandb", "trackio"):
        with pytest.raises(UserError, match=f"{name} is not installed") as caught:
            trackers.check([name])
        assert caught.value.fix == f'pip install -e ".[{name}]"'
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match="where MLflow is"):
        trackers.check(["mlflow"])
    with pytest.raises(UserError, match="no key of Weights"):
        trackers.check(["wandb"])
    trackers.check(["tensorboard", "trackio"])


def test_params_yaml_need_not_have_the_section() -> None:
    document = params.load(ROOT / "params.yaml")
    assert document.pop("track") == []
    params_schema.check(document)
    assert trackers.named_in(document) == ()
    with pytest.raises(ParamsError, match=r"track.0: Input should be 'tensorboard', 'mlflow'"):
        params_schema.check(document | {"track": ["mlfow"]})


def test_a_rounds_worktree_writes_below_its_project(tmp_path: Path) -> None:
    from flows.git import git

    project = tmp_path / "project"
    project.mkdir()
    assert round_tracking.project_of(project) == project
    git(project, "init", "--quiet")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "a project")
    worktree = project / ".cohobate/rounds/round-0001"
    git(project, "worktree", "add", "--quiet", "--detach", str(worktree))
    assert round_tracking.project_of(worktree).resolve() == project.resolve()
