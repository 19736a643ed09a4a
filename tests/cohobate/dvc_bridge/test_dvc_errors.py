"""What DVC refuses comes with a fix of its kind."""

import subprocess
from pathlib import Path

import dvc.exceptions
import dvc.stage.exceptions
import pytest
from dvc.parsing import ResolveError
from scmrepo.exceptions import SCMError

from cohobate.dvc_bridge import versioning
from cohobate.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (tmp_path / "params.yaml").write_text("knob: 1\n")
    return tmp_path


def stage(name: str, **fields: list[str]) -> str:
    lines = "".join(f"    {key}: [{', '.join(value)}]\n" for key, value in fields.items())
    return f"  {name}:\n    cmd: echo {name}\n{lines}"


@pytest.mark.parametrize(
    ("stages", "words", "fix"),
    [
        (stage("a", deps=["x"], outs=["x"]), "both a dependency and an output", "what it writes"),
        (
            stage("a", deps=["y"], outs=["x"]) + stage("b", deps=["x"], outs=["y"]),
            "both a dependency and an output",
            "nor what a stage after it writes",
        ),
        (stage("a", outs=["x"]) + stage("b", outs=["x"]), "is specified in", "one stage alone"),
        (stage("a", outs=["x"]) + stage("b", outs=["x/y"]), "overlap", "inside another"),
        (stage("a", outs=['"${nothing}"']), "nothing", "params.yaml"),
        ("  a: {foreach: '${knob.b}', do: {cmd: echo}}\n", "knob", "params.yaml"),
    ],
)
def test_a_graph_that_dvc_refuses_names_what_to_change(
    root: Path, stages: str, words: str, fix: str
) -> None:
    (root / "dvc.yaml").write_text(f"stages:\n{stages}")
    with pytest.raises(UserError, match=words) as refused:
        versioning.stages(root)
    assert fix in refused.value.fix


def test_a_source_that_is_missing_names_how_to_have_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "dvc.yaml").write_text("stages:\n" + stage("a", deps=["rows.jsonl"], outs=["x"]))
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=r"rows\.jsonl") as refused:
        versioning.reproduce(root, "a", lambda address: None)
    assert "dvc pull" in refused.value.fix


def test_a_folder_that_is_no_dvc_project_or_no_repository(root: Path, tmp_path: Path) -> None:
    (root / ".git").rename(root / "git")
    with pytest.raises(UserError) as refused:
        versioning.stages(root)
    assert "git init" in refused.value.fix
    (root / "git").rename(root / ".git")
    (root / ".dvc").rename(root / "dvc")
    with pytest.raises(UserError) as refused:
        versioning.stages(root)
    assert "git checkout HEAD -- .dvc" in refused.value.fix


def test_the_classes_that_fixes_are_named_by_are_there() -> None:
    """A contract: the names belong to DVC."""
    for name in ("CyclicGraphError", "OutputDuplicationError", "OverlappingOutputPathsError"):
        assert hasattr(dvc.exceptions, name)
    assert hasattr(dvc.stage.exceptions, "MissingDataSource")
    assert issubclass(ResolveError, dvc.exceptions.DvcException) and SCMError
