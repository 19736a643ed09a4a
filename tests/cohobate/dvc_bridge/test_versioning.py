"""Stages are skipped, restored and run as `dvc repro` does it, with the same dvc.lock."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from dvc.exceptions import DownloadError

from cohobate.dvc_bridge import stale_lock, storage, versioning
from cohobate.dvc_bridge.stale_lock import drop_stale_lock
from cohobate.errors import UserError

DVC_YAML = """
stages:
  first:
    cmd: python -m tasks first
    deps: [source.txt]
    outs: [out/first.txt]
  second:
    cmd: python -m tasks second
    deps: [out/first.txt]
    params: [knob]
    outs: [out/second.txt]
  aside:
    cmd: python -m tasks aside
    deps: [source.txt]
    outs: [out/aside.txt]
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DVC project of three stages whose commands a module called `tasks` of its own answers."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text("knob: 1\n")
    (tmp_path / "source.txt").write_text("spirit\n")
    package = tmp_path / "tasks"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(
        "import sys, pathlib\n"
        "name = sys.argv[1]\n"
        "knob = pathlib.Path('params.yaml').read_text() if name == 'second' else ''\n"
        "pathlib.Path('out').mkdir(exist_ok=True)\n"
        "pathlib.Path(f'out/{name}.txt').write_text(f'{name} {knob}')\n"
    )
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run([*_tool(command)], cwd=tmp_path, check=True)
    return tmp_path


def _tool(command: list[str]) -> list[str]:
    tool = Path(sys.executable).parent / command[0]
    return [str(tool) if tool.exists() else command[0], *command[1:]]


def body(address: str) -> None:
    knob = Path("params.yaml").read_text() if address == "second" else ""
    Path("out").mkdir(exist_ok=True)
    Path(f"out/{address}.txt").write_text(f"{address} {knob}")


def in_process(project: Path) -> dict[str, str]:
    nodes = versioning.stages(project)
    # the other way round where the arrows allow it, as parallel stages may end
    order = sorted(nodes, key=lambda n: (len(n.upstream), n.address == "first"))
    outcomes = {n.address: versioning.reproduce(project, n.address, body) for n in order}
    versioning.sort_lock(project, nodes)
    return outcomes


def dvc_repro(project: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        _tool(["dvc", "repro"]), cwd=project, check=True, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    return done.stdout


def test_dvc_repro_and_reproduce_write_the_same_lock_and_leave_each_other_nothing_to_do(
    project: Path,
) -> None:
    dvc_repro(project)
    by_dvc = (project / "dvc.lock").read_bytes()
    assert set(in_process(project).values()) == {"unchanged"}
    subprocess.run(["rm", "-rf", ".dvc/cache", "dvc.lock", "out"], cwd=project, check=True)
    assert set(in_process(project).values()) == {"ran"}
    assert (project / "dvc.lock").read_bytes() == by_dvc
    assert "Running stage" not in dvc_repro(project)


def test_a_changed_param_runs_and_changed_back_is_restored(project: Path) -> None:
    in_process(project)
    first = (project / "dvc.lock").read_bytes()
    (project / "params.yaml").write_text("knob: 2\n")
    assert in_process(project) == {"first": "unchanged", "second": "ran", "aside": "unchanged"}
    (project / "params.yaml").write_text("knob: 1\n")
    assert in_process(project) == {"first": "unchanged", "second": "restored", "aside": "unchanged"}
    assert (project / "dvc.lock").read_bytes() == first


def test_deleted_outputs_are_restored(project: Path) -> None:
    in_process(project)
    (project / "out/first.txt").unlink()
    assert in_process(project) == {"first": "restored", "second": "unchanged", "aside": "unchanged"}
    assert (project / "out/first.txt").read_text() == "first "


def test_deleted_outputs_are_restored_where_there_is_a_remote_too(project: Path) -> None:
    remote = project.parent / "remote"
    subprocess.run(_tool(["dvc", "remote", "add", "-q", "-d", "r", str(remote)]), check=True)
    in_process(project)
    (project / "out/first.txt").unlink()
    assert in_process(project)["first"] == "restored"
    assert (project / "out/first.txt").read_text() == "first "


def test_a_deleted_file_that_git_keeps_is_restored_where_there_is_a_remote_too(
    with_remote: Path,
) -> None:
    text = (with_remote / "dvc.yaml").read_text()
    uncached = "    metrics: [out/aside.txt: {cache: false}]"
    (with_remote / "dvc.yaml").write_text(text.replace("    outs: [out/aside.txt]", uncached))
    assert versioning.reproduce(with_remote, "aside", body) == "ran"
    storage.push(with_remote, ["aside"])
    before = (with_remote / "out/aside.txt").read_bytes()
    (with_remote / "out/aside.txt").unlink()
    assert versioning.reproduce(with_remote, "aside", pytest.fail) == "restored"
    assert (with_remote / "out/aside.txt").read_bytes() == before


def test_the_error_of_a_stage_passes_through_and_nothing_is_locked(project: Path) -> None:
    def fails(address: str) -> None:
        raise UserError(f"{address} is not possible", fix="try something else")

    with pytest.raises(UserError, match="first is not possible"):
        versioning.reproduce(project, "first", fails)
    assert versioning.locked_stages(project) == []
    assert versioning.reproduce(project, "first", body) == "ran"


def test_reasons_say_what_changed(project: Path) -> None:
    in_process(project)
    assert versioning.reasons(project) == {}
    (project / "params.yaml").write_text("knob: 3\n")
    assert versioning.reasons(project) == {"second": ["knob modified"]}


def test_an_incomplete_list_of_locks_is_named_with_its_fix(project: Path) -> None:
    in_process(project)
    (project / ".dvc/tmp/rwlock").write_text('{"read":')
    with pytest.raises(UserError, match=r"rm .dvc/tmp/rwlock"):
        versioning.reproduce(project, "first", body)
    drop_stale_lock(project)
    assert versioning.reproduce(project, "first", body) == "unchanged"
    drop_stale_lock(project)  # of a sound one, or of none, nothing is taken


@pytest.mark.parametrize("how", ["torn", "in conflict", "empty"])
def test_a_lock_that_cannot_be_read_is_named_and_its_fix_brings_all_back(
    project: Path, how: str
) -> None:
    in_process(project)
    lock = project / "dvc.lock"
    good = lock.read_text()
    ours_and_theirs = f"<<<<<<< HEAD\n{good}=======\n{good}>>>>>>> other\n"
    torn = good[: good.index("path:") + 4]
    lock.write_text({"torn": torn, "in conflict": ours_and_theirs, "empty": ""}[how])
    with pytest.raises(UserError, match=r"dvc.lock cannot be read") as caught:
        versioning.stages(project)
    assert ("merge conflicts" in caught.value.what) == (how == "in conflict")
    assert caught.value.fix and "rm dvc.lock" in caught.value.fix
    lock.unlink()
    assert set(in_process(project).values()) == {"restored"}
    assert lock.read_text() == good


def test_a_torn_lock_file_stays_while_someone_is_at_work(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_process(project)
    torn = project / ".dvc/tmp/rwlock"
    torn.write_text('{"read":')
    other = subprocess.Popen(
        [sys.executable, "-c", "input()", "dvc"], stdin=subprocess.PIPE, cwd=project
    )
    monkeypatch.setattr(stale_lock, "BUSY_SECONDS", 0.2)
    monkeypatch.setattr(stale_lock, "_COMMANDS", {"-c"})
    drop_stale_lock(project)
    assert torn.exists()
    other.communicate()
    drop_stale_lock(project)
    assert not torn.exists()


def test_who_was_killed_stands_in_no_list_though_his_number_was_given_to_another(
    project: Path,
) -> None:
    in_process(project)
    listed = project / ".dvc/tmp/rwlock"
    reader = {"pid": os.getpid(), "cmd": "someone else's"}  # this process lives, and is another
    listed.write_text(json.dumps({"read": {str(project / "data.txt"): [reader]}, "write": {}}))
    drop_stale_lock(project)
    assert listed.exists()  # for all that can be known it is in use
    os.utime(listed, (0, 0))  # written before this process began
    drop_stale_lock(project)
    assert not listed.exists()


def test_push_copies_outputs_and_run_cache(project: Path) -> None:
    in_process(project)
    assert storage.push(project, ["first"]) == 0  # no remote, nothing to do
    remote = project.parent / "remote"
    subprocess.run(_tool(["dvc", "remote", "add", "-q", "-d", "r", str(remote)]), check=True)
    sent = storage.push(project, ["first", "second", "aside"])
    assert sent == 6  # an output and its record in the run-cache, for each of the three
    subprocess.run(["rm", "-rf", ".dvc/cache", "out"], cwd=project, check=True)
    assert set(in_process(project).values()) == {"restored"}


def test_a_stage_waits_for_a_process_that_is_at_its_files(project: Path) -> None:
    in_process(project)
    (project / "source.txt").write_text("more spirit\n")
    holder = subprocess.Popen(["sleep", "2"])
    held = {str(project / "out/first.txt"): {"pid": holder.pid, "cmd": "a killed round's worker"}}
    (project / ".dvc/tmp/rwlock").write_text(json.dumps({"write": held, "read": {}}))
    reaper = threading.Thread(target=holder.wait)  # or it stays a zombie, which still has its pid
    reaper.start()
    assert versioning.reproduce(project, "first", body) == "ran"
    assert holder.returncode == 0
    reaper.join()


def damage(path: Path) -> None:
    """Flip a bit, in a way that DVC's own bookkeeping does not see."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def objects(project: Path, folder: str = ".dvc/cache") -> dict[str, Path]:
    """The cached copy of each output, by its content's first word."""
    files = [path for path in (project / folder / "files").rglob("*") if path.is_file()]
    return {path.read_text().split()[0]: path for path in files}


@pytest.fixture
def with_remote(project: Path) -> Path:
    command = ["dvc", "remote", "add", "-q", "-d", "store", str(project.parent / "store")]
    subprocess.run(_tool(command), cwd=project, check=True)
    for address in ("first", "second"):
        versioning.reproduce(project, address, body)
    storage.push(project, ["first", "second"])
    return project


def test_a_bit_that_flipped_in_an_input_is_found_and_the_file_fetched_again(
    with_remote: Path,
) -> None:
    good = (with_remote / "out/first.txt").read_bytes()
    damage(objects(with_remote)["first"])
    damage(with_remote / "out/first.txt")
    (with_remote / "params.yaml").write_text("knob: 2\n")
    seen = []
    versioning.reproduce(
        with_remote, "second", lambda a: (seen.append(Path("out/first.txt").read_bytes()), body(a))
    )
    assert seen == [good]
    assert (with_remote / "out/first.txt").read_bytes() == good


def test_a_damaged_object_is_not_restored(with_remote: Path) -> None:
    good = (with_remote / "out/first.txt").read_bytes()
    damage(objects(with_remote)["first"])
    (with_remote / "out/first.txt").unlink()
    versioning.reproduce(with_remote, "first", body)
    assert (with_remote / "out/first.txt").read_bytes() == good


def test_a_file_of_which_no_good_copy_is_left_is_named(with_remote: Path) -> None:
    damage(objects(with_remote.parent / "store", "")["first"])
    damage(objects(with_remote)["first"])
    damage(with_remote / "out/first.txt")
    (with_remote / "params.yaml").write_text("knob: 2\n")
    with pytest.raises(UserError, match=r"first\.txt"):
        versioning.reproduce(with_remote, "second", body)


def test_an_output_that_cache_and_remote_lost_is_put_back_from_the_workspace(
    with_remote: Path,
) -> None:
    cache = with_remote / ".dvc/cache/files"
    before = {path for path in cache.rglob("*") if path.is_file()}
    for lost in (cache, with_remote.parent / "store/files"):
        shutil.rmtree(lost)
    for outcome in ("restored", "unchanged"):
        for address in ("first", "second"):
            assert versioning.reproduce(with_remote, address, body) == outcome
    assert {path for path in cache.rglob("*") if path.is_file()} == before
    storage.push(with_remote, ["first", "second"])
    assert storage.absent_from_remote(with_remote) == []


def test_inputs_are_brought_whether_outputs_hold_them_or_they_hold_outputs(
    with_remote: Path,
) -> None:
    text = (with_remote / "dvc.yaml").read_text()
    (with_remote / "dvc.yaml").write_text(
        text + "  all:\n    cmd: python -m tasks all\n    deps: [out]\n    outs: [all.txt]\n"
    )
    shutil.rmtree(with_remote / "out")
    shutil.rmtree(with_remote / ".dvc/cache")
    storage.pull_inputs(with_remote, "second")
    assert [path.name for path in (with_remote / "out").iterdir()] == ["first.txt"]
    with pytest.raises(UserError, match=r"aside\.txt"):  # it has not run yet
        storage.pull_inputs(with_remote, "all")
    versioning.reproduce(with_remote, "aside", body)
    storage.push(with_remote, ["aside"])
    shutil.rmtree(with_remote / "out")
    storage.pull_inputs(with_remote, "all")
    names = sorted(path.name for path in (with_remote / "out").iterdir())
    assert names == ["aside.txt", "first.txt", "second.txt"]


def test_a_tracked_file_is_an_input_and_no_stage(project: Path) -> None:
    storage.track(project, Path("source.txt"))
    nodes = versioning.stages(project)
    assert {node.address for node in nodes} == {"aside", "first", "second"}
    assert {node.address: node.upstream for node in nodes}["second"] == ("first",)
    assert versioning.reproduce(project, "first", body) == "ran"
    assert versioning.reproduce(project, "first", body) == "unchanged"


def test_a_download_that_fails_is_asked_for_again_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    left = [DownloadError(1), DownloadError(1)]

    def download() -> None:
        if left:
            raise left.pop()

    versioning.retry_download(download)
    assert not left
    monkeypatch.setattr(versioning, "DOWNLOAD_SECONDS", 0)
    left = [DownloadError(1), DownloadError(1)]
    with pytest.raises(DownloadError):
        versioning.retry_download(download)
    assert len(left) == 1


def test_the_worker_of_a_killed_round_is_waited_for(project: Path) -> None:
    in_process(project)
    worker = project / "ray/worker.py"
    worker.parent.mkdir()
    worker.write_text("import time\ntime.sleep(2)\n")
    shell = f"{sys.executable} {worker} >/dev/null & echo $!"  # its parent ends at once
    pid = int(subprocess.run(shell, shell=True, capture_output=True, check=True).stdout)
    listed = project / ".dvc/tmp/rwlock"
    writer = {"pid": pid, "cmd": "a stage"}
    listed.write_text(json.dumps({"read": {}, "write": {str(project / "out"): writer}}))
    drop_stale_lock(project)
    assert not listed.exists()
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
