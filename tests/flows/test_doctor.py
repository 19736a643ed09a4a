"""What `doctor` says of a machine and folder."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import doctor
from tests.flows import quick_project

HOLDER = """\
import sys, time
from dvc.fs import localfs
from dvc.repo import Repo
from dvc.rwlock import rwlock

repo = Repo(".")
paths = [f"{repo.root_dir}/data/collect"]
with rwlock(repo.tmp_dir, localfs, "a long stage", [], paths, repo.config["core"]["hardlink_lock"]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return quick_project.build(tmp_path)


@pytest.fixture
def holder(root: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds DVC's lock of data/collect."""
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_held_locks_are_named_with_their_process_while_it_lives_and_after(
    root: Path, holder: subprocess.Popen[str]
) -> None:
    (held,) = doctor._locks(root)
    assert held.ok and "working on data/collect" in held.what
    assert f"a long stage (process {holder.pid})" in held.what
    holder.kill()
    holder.wait()
    deadline = time.monotonic() + 10
    while "working on" in (left := next(iter(doctor._locks(root)))).what:
        assert time.monotonic() < deadline
    assert left.ok and f"processes that ended ({holder.pid})" in left.what


@pytest.mark.parametrize("torn", ["", '{"write": {"a"', "[]", '{"read": {"a": [{"pid": 1}]}}'])
def test_a_torn_lock_file_comes_with_its_fix(root: Path, torn: str) -> None:
    path = root / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True)
    path.write_text(torn)
    (check,) = doctor._locks(root)
    assert not check.ok and "rm .dvc/tmp/rwlock" in check.fix


def test_no_lock_is_held_in_a_project_at_rest(root: Path) -> None:
    assert [check.what for check in doctor._locks(root)] == ["locks: none is held"]


def test_folders_outside_the_project_are_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "file/cache"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    unusable, long = doctor._folders()
    assert not unusable.ok and "COHOBATE_CACHE" in unusable.fix
    assert not long.ok and "export RAY_TMPDIR=/tmp" in long.fix
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_TMPDIR")
    assert all(check.ok for check in doctor._folders())


def test_a_folder_outside_git_and_a_project_in_a_folder_are_told_apart(root: Path) -> None:
    (check,) = doctor._git(root)
    assert check.ok and "its top folder" in check.what
    inner = root / "ml"
    inner.mkdir()
    (check,) = doctor._git(inner)
    assert check.ok and "ml/" in check.what
    (root / ".git").rename(root / "git")
    (check,) = doctor._git(root)
    assert not check.ok and "git init" in check.fix
