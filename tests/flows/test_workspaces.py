"""Workspaces on nodes without a shared disk: answers are bought into one ledger."""

from pathlib import Path

import pytest

from cohobate.backends.ledger_storage import LEDGER, LEDGER_VARIABLE
from cohobate.dvc_bridge import storage
from cohobate.errors import UserError
from flows import workspaces
from flows.workspaces import StageBundle

TEACHER = "teachers: {main: {model: large-1, endpoint: 'https://api.example.com/v1'}}\n"


def test_a_teacher_behind_an_endpoint_needs_a_ledger_that_all_nodes_reach(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LEDGER_VARIABLE, raising=False)
    monkeypatch.setattr(storage, "default_remote", lambda root: "s3")
    monkeypatch.setattr(storage, "remotes", lambda root: {"s3": {"url": "s3://bucket/prefix"}})
    monkeypatch.setattr(workspaces, "_small_files", lambda root: [])
    (project / "params.yaml").write_text(TEACHER)
    with pytest.raises(UserError, match="must be on S3") as refused:
        workspaces.make_bundle(project)
    assert "export COHOBATE_LEDGER=s3://" in refused.value.fix
    (project / "params.yaml").write_text(TEACHER + "generate: {ledger: 's3://bucket/ledger'}\n")
    assert workspaces.make_bundle(project).default_remote == "s3"
    (project / "params.yaml").write_text(TEACHER)
    monkeypatch.setenv(LEDGER_VARIABLE, "s3://bucket/ledger")
    assert workspaces.make_bundle(project).default_remote == "s3"


def test_the_stages_of_a_node_share_a_ledger_that_outlives_their_workspaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COHOBATE_WORKSPACES", str(tmp_path / "node"))
    monkeypatch.setattr(storage, "make_standalone", lambda *_, **__: None)
    (tmp_path / "code").mkdir()
    bundle = StageBundle("project", {}, {}, "s3")
    roots = [
        workspaces.open_workspace(bundle, tmp_path / "code", a)
        for a in ("generate@main", "evaluate")
    ]
    (roots[0] / LEDGER / "teacher.jsonl").write_text("an answer")
    assert (roots[1] / LEDGER / "teacher.jsonl").read_text() == "an answer"
    assert (tmp_path / "node" / "ledger" / "teacher.jsonl").exists()
