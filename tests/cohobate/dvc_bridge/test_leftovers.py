"""What a phase or a teacher wrote that params.yaml no longer has is not read any more."""

import shutil
import subprocess
from pathlib import Path

import pytest

from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.leftovers import drop_leftovers
from tests.tiny_project import ROOT

STAGES = """\
stages:
  train:
    foreach: ${train}
    do:
      cmd: python -m tasks train@${key}
      params: ["train.${key}"]
      outs: ["models/train/${key}"]
  verdict:
    cmd: python -m tasks verdict
    deps: [models/train]
    outs: [data/verdict.txt]
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc")
    (tmp_path / "dvc.yaml").write_text(STAGES)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def body(address: str) -> None:
    """Write what the stage makes: the verdict lists the phases."""
    stage, _, item = address.partition("@")
    path = Path("models/train", item, "weights") if stage == "train" else Path("data/verdict.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(sorted(p.name for p in Path("models/train").iterdir() if p.is_dir())))


def round_of(root: Path, phases: str) -> str:
    (root / "params.yaml").write_text(f"train: {phases}\n")
    nodes = versioning.stages(root)
    drop_leftovers(root, nodes)
    for node in nodes:
        versioning.reproduce(root, node.address, body)
    return (root / "data/verdict.txt").read_text()


def test_an_old_phase_is_not_read_and_comes_back_from_the_cache(root: Path) -> None:
    assert round_of(root, "{kd: {n: 1}, sft: {n: 1}}") == "kd sft"
    mine = root / "models/train/mine"  # made by no stage: a user's own
    mine.mkdir()
    assert round_of(root, "{gkd: {n: 1}, sft: {n: 1}}") == "gkd mine sft"
    assert mine.is_dir() and not (root / "models/train/kd").exists()
    mine.rmdir()
    assert round_of(root, "{kd: {n: 1}, sft: {n: 1}}") == "kd sft"
    assert (root / "models/train/kd/weights").exists()
