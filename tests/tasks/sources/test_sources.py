"""The stage `sources`, and how DVC sees a change of any source through it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cohobate import params
from cohobate.errors import UserError
from flows import overrides, params_schema
from tasks.sources.stage import run
from tests.tiny_project import ROOT

SEVERAL = (
    "collect.source={type: several, path: data/sources}",
    "collect.template=null",
    "collect.sources={a: {source: {type: files, path: a.jsonl}},"
    " b: {source: {type: files, path: more/b.jsonl}}}",
)


def fingerprint(path: str) -> str:
    run("here", {"source": {"path": path}})
    digest: str = json.loads(Path("data/sources/here.json").read_text())["sha256"]
    return digest


def test_a_fingerprint_changes_with_the_content_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("one")
    first = fingerprint("a.jsonl")
    Path("a.jsonl").write_text("one")
    assert fingerprint("a.jsonl") == first
    Path("a.jsonl").write_text("two")
    assert fingerprint("a.jsonl") != first
    Path("folder/inside").mkdir(parents=True)
    Path("folder/inside/x").write_text("x")
    whole = fingerprint("folder")
    Path("folder/inside/x").rename("folder/inside/y")
    assert fingerprint("folder") != whole
    with pytest.raises(UserError, match="cannot read the data of the source here"):
        fingerprint("nowhere.jsonl")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("params.yaml", "dvc.yaml", ".dvc/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_collect_waits_for_the_fingerprint_of_every_source(repository: Path) -> None:
    from cohobate.dvc_bridge import versioning

    before = {node.address for node in versioning.stages(repository)}
    assert not any(address.startswith("sources") for address in before)
    overrides.apply(repository, [*SEVERAL])
    nodes = {node.address: node for node in versioning.stages(repository)}
    assert set(nodes) - before == {"sources@a", "sources@b"}
    assert {"sources@a", "sources@b"} <= set(nodes["collect"].upstream)


def test_names_of_tasks_must_be_sources(repository: Path) -> None:
    wrong = "task.tasks={c: {verifier: {type: numeric}}}"
    with pytest.raises(UserError, match="names the task 'c', and section collect"):
        overrides.apply(repository, [*SEVERAL, wrong])
    with pytest.raises(UserError, match="names the task 'x'"):
        overrides.apply(repository, ["train.kd.mixing={weights: {x: 1}}"])
    with pytest.raises(UserError, match="the round has one source"):
        overrides.apply(repository, ["evaluate.gate.each_task={min_gain: 0}"])
    right = "train.kd.mixing={weights: {a: 1, b: 2}}"
    overrides.apply(repository, [*SEVERAL, right, "filter.filters.0.tasks=[a]"])
    params_schema.check(params.load(repository / "params.yaml"))
