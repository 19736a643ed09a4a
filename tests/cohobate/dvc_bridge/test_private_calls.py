"""A contract: the names of DVC that the bridge uses exist, fit its calls, and do what it needs.

A new release of DVC is tried by this file first. Each test says what the bridge counts on.
"""

import hashlib
import inspect
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cohobate.dvc_bridge import private_calls

DVC_YAML = """
stages:
  second:
    cmd: cat first.txt > second.txt
    deps: [first.txt]
    outs: [second.txt]
  first:
    cmd: cat source.txt > first.txt
    deps: [source.txt]
    outs: [first.txt, folder]
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "source.txt").write_text("text\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    opened = private_calls.open_repository(tmp_path)
    yield opened
    opened.close()


def write_first(stage: Any, dry: bool = False, run_env: Any = None) -> None:
    Path("first.txt").write_text("text\n")
    Path("folder").mkdir(exist_ok=True)
    Path("folder/part.txt").write_text("part\n")


@pytest.fixture
def ran(repo: Any) -> Any:
    """The repository after its stage `first` has run."""
    with private_calls.command_replaced_by(write_first):
        repo.reproduce(["first"], single_item=True)
    return repo


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_signatures() -> None:
    from dvc import lock
    from dvc.config import Config
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import plan_repro
    from dvc.stage import run
    from dvc.utils.serialize import load_yaml, modify_yaml

    assert parameters(run.cmd_run) == ["stage", "dry", "run_env"]
    assert parameters(lock_repo) == ["repo"]
    assert parameters(plan_repro)[0] == "graph"
    assert parameters(load_yaml)[0] == parameters(modify_yaml)[0] == "path"
    assert isinstance(lock.DEFAULT_TIMEOUT, int | float)
    assert "_wait_for_lock" in parameters(Repo)
    assert parameters(Config)[0] == "dvc_dir"
    assert {"targets", "single_item"} <= set(parameters(Repo.reproduce))
    assert {"targets", "run_cache"} <= set(parameters(Repo.push))
    assert {"targets", "force"} <= set(parameters(Repo.pull))
    assert "targets" in parameters(Repo.fetch)
    assert "cloud" in parameters(Repo.status)
    assert {"strict", "recursive"} <= set(parameters(Repo.find_outs_by_path))


def test_pull_and_allow_missing_reach_the_stage() -> None:
    """`reproduce` hands its further options to `Stage.reproduce` and its check of changes."""
    from dvc.stage import Stage

    assert "pull" in parameters(Stage.reproduce) or "kwargs" in parameters(Stage.reproduce)
    assert "allow_missing" in parameters(Stage.changed)


def test_exceptions_are_of_the_kinds_that_are_told_apart() -> None:
    errors = private_calls.errors()
    assert all(issubclass(kind, errors.any) for kind in errors)


def test_the_run_order_is_that_of_dvc_repro(repo: Any) -> None:
    with private_calls.locked(repo):
        order = [stage.name for stage in private_calls.run_order(repo.index.graph)]
    assert order == ["first", "second"]


def test_a_replaced_command_is_called_in_this_process_and_put_back(repo: Any) -> None:
    from dvc.stage import run

    original, called = run.cmd_run, []

    def command(stage: Any, dry: bool = False, run_env: Any = None) -> None:
        called.append((os.getpid(), stage.addressing, stage.cmd, dry))
        write_first(stage)

    with private_calls.command_replaced_by(command) as before:
        assert before is original
        (changed,) = repo.reproduce(["first"], single_item=True)
    assert run.cmd_run is original
    assert called == [(os.getpid(), "first", "cat source.txt > first.txt", False)]
    assert changed.name == "first"
    assert repo.reproduce(["first"], single_item=True) == []  # nothing to do, nothing called


def test_an_error_of_the_command_is_the_cause_of_dvcs(repo: Any) -> None:
    def command(stage: Any, dry: bool = False, run_env: Any = None) -> None:
        raise KeyError("mine")

    with (
        private_calls.command_replaced_by(command),
        pytest.raises(private_calls.errors().reproduction) as failed,
    ):
        repo.reproduce(["first"], single_item=True)
    assert isinstance(failed.value.__cause__, KeyError)


def test_the_lock_is_free_while_a_command_runs(repo: Any) -> None:
    states: list[bool] = []

    def command(stage: Any, dry: bool = False, run_env: Any = None) -> None:
        states.append(bool(repo.lock.is_locked))
        write_first(stage)

    with private_calls.command_replaced_by(command):
        repo.reproduce(["first"], single_item=True)
    assert states == [False]


def test_a_held_lock_is_waited_for(repo: Any, tmp_path: Path) -> None:
    other, order = private_calls.open_repository(tmp_path), []

    def wait() -> None:
        with private_calls.locked(other):
            order.append("second")

    waiting = threading.Thread(target=wait)
    with private_calls.locked(repo):
        waiting.start()
        time.sleep(0.2)
        order.append("first")
    waiting.join(30)
    assert order == ["first", "second"]
    other.close()


def test_what_a_stage_says_of_itself(ran: Any, tmp_path: Path) -> None:
    (stage,) = ran.stage.collect("first")
    assert (stage.name, stage.desc) == ("first", None)
    assert [Path(dep.fs_path) for dep in stage.deps] == [tmp_path / "source.txt"]
    assert [out.def_path for out in stage.outs] == ["first.txt", "folder"]
    file, folder = stage.outs
    assert file.exists and file.use_cache and file.hash_info.value and not file.hash_info.isdir
    assert folder.hash_info.isdir and folder.hash_info.value.endswith(".dir")
    ((key, _, info),) = folder.get_obj()
    assert key == ("part.txt",) and info.value == hashlib.md5(b"part\n").hexdigest()
    stored = Path(file.cache.oid_to_path(file.hash_info.value))
    assert stored.read_text() == "text\n"
    Path("first.txt").unlink()
    file.checkout(force=True)
    assert Path("first.txt").read_text() == "text\n"


def test_outputs_are_found_by_path(ran: Any, tmp_path: Path) -> None:
    for path in ("folder", "folder/part.txt", "."):
        where = str(tmp_path / path)
        with private_calls.locked(ran):
            outs = ran.find_outs_by_path(where, strict=False, recursive=True)
        assert "folder" in [out.def_path for out in outs]


def test_status_says_what_changed(ran: Any) -> None:
    Path("source.txt").write_text("more\n")
    assert ran.status(["first"]) == {"first": [{"changed deps": {"source.txt": "modified"}}]}


def test_yaml_is_written_as_dvc_writes_it(ran: Any, tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    before = lock.read_bytes()
    with private_calls.edit_yaml(lock) as document:
        assert list(document["stages"]) == ["first"]
    assert lock.read_bytes() == before
    assert private_calls.load_yaml(lock)["schema"] == "2.0"


def test_the_list_of_locks_has_the_form_that_stale_lock_reads() -> None:
    from dvc.rwlock import RWLOCK_FILE, SCHEMA

    reader = {"pid": 1, "cmd": "dvc"}
    assert RWLOCK_FILE == "rwlock"
    assert SCHEMA({"read": {"a": [reader]}, "write": {"b": reader}})


def test_a_folder_that_is_no_repository_yet_can_be_configured(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    with private_calls.configuration(tmp_path).edit("local") as local:
        local["core"] |= {"no_scm": True}
        local["cache"]["dir"] = str(tmp_path / "cache")
        local["remote"] |= {"r": {"url": "s3://bucket"}}
    text = (tmp_path / ".dvc/config.local").read_text()
    assert "no_scm" in text and str(tmp_path / "cache") in text and "s3://bucket" in text
