"""An edit that changes no code reruns nothing; one that does can be vouched for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cohobate.data.records import write_json
from cohobate.errors import UserError
from flows.code_changes import accept, check_reruns, refresh_fingerprints
from flows.plan import plan
from flows.stage_seconds import STAGE_SECONDS
from tests import tiny_project

STAGE = "tasks/collect/stage.py"
SPLIT = "tasks/collect/split.py"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "teacher").mkdir()
    root = tiny_project.build(tmp_path / "project", tmp_path / "teacher")
    monkeypatch.chdir(root)
    repro(root)
    return root


def repro(root: Path) -> str:
    command = [sys.executable, "-m", "dvc", "repro", "collect"]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "PYTHONPATH": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        command, cwd=root, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout


def states() -> dict[str, tuple[str, tuple[str, ...]]]:
    return {stage.address: (stage.state, stage.reasons) for stage in plan(Path(), "collect")}


def append(root: Path, file: str, text: str) -> None:
    path = root / file
    path.write_text(path.read_text() + text)


def test_an_edited_comment_reruns_nothing(root: Path) -> None:
    append(root, STAGE, "# a comment\n")
    assert states()["collect"][0] == "up to date"
    assert "Running stage 'collect'" not in repro(root)


def test_a_change_of_code_is_called_so_and_can_be_accepted(root: Path) -> None:
    append(root, SPLIT, "MORE = 1\n")
    code_only = ("code only", ("tasks.collect.split",))
    assert states()["collect"] == code_only
    refresh_fingerprints(root)
    assert states()["collect"] == code_only
    assert accept(root, ["collect"]) == ["collect"]
    assert states()["collect"] == ("up to date", ())
    assert "Running stage" not in repro(root)


def test_more_than_code_cannot_be_accepted(root: Path) -> None:
    append(root, SPLIT, "MORE = 1\n")
    append(root, "rows.jsonl", '{"text": "fur", "answer": "animal"}\n')
    assert states()["collect"] == ("changed", ("rows.jsonl modified", "tasks.collect.split"))
    with pytest.raises(UserError, match="more than its code changed"):
        accept(root, ["collect"])
    assert accept(root, []) == []


def test_a_stage_that_is_not_known_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match="no stage is called 'colect'"):
        accept(root, ["colect"])


def test_hours_are_not_run_again_for_code_alone_unless_asked(root: Path) -> None:
    append(root, SPLIT, "MORE = 1\n")
    check_reruns(root, plan(root, "collect"))  # seconds: it may run
    write_json(root / STAGE_SECONDS, {"collect": {"seconds": 7200.0}})
    with pytest.raises(UserError, match=r"collect \(2\.0 h\)") as refused:
        check_reruns(root, plan(root, "collect"))
    assert "cohobate accept collect" in refused.value.fix
