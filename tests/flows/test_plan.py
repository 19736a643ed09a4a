"""What `status` and `--dry-run` say of each stage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.plan import plan

PIPELINE = """\
stages:
  collect: {cmd: cp rows collected, deps: [rows], outs: [collected]}
  filter: {cmd: cp collected filtered, deps: [collected], outs: [filtered]}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    dvc(tmp_path, "init", "--no-scm", "--quiet")
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "rows").write_text("one\n")
    return tmp_path


def dvc(root: Path, *command: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    command = (sys.executable, "-m", "dvc", *command)
    subprocess.run(command, cwd=root, check=True, capture_output=True, env=environment)


def states(root: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {stage.address: (stage.state, stage.reasons) for stage in plan(root)}


def test_a_stage_that_never_ran_is_new_and_one_that_ran_is_up_to_date(root: Path) -> None:
    never = ("new", ("has not run here",))
    assert states(root) == {"collect": never, "filter": never}
    dvc(root, "repro", "--quiet", "collect")
    assert states(root) == {"collect": ("up to date", ()), "filter": never}


def test_what_moved_is_named_and_what_is_behind_it_follows(root: Path) -> None:
    dvc(root, "repro", "--quiet")
    (root / "rows").write_text("two\n")
    by_stage = states(root)
    assert by_stage["collect"] == ("changed", ("rows modified",))
    assert by_stage["filter"] == ("follows", ("collect may change",))
