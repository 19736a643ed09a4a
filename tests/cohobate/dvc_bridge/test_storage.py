"""Where a worktree's storage lies: in the project's, whatever the folders are called."""

import subprocess
from pathlib import Path

import pytest

from cohobate.dvc_bridge import storage
from cohobate.dvc_bridge.versioning import open_repo


@pytest.mark.parametrize("name", ["plain", "dis til ü/模型"])
def test_a_worktree_uses_the_cache_and_the_local_remote_of_the_project(
    tmp_path: Path, name: str
) -> None:
    root = tmp_path / name
    worktree = root / ".cohobate/rounds/round-0001" / name
    for folder in (root, worktree):
        (folder / ".dvc").mkdir(parents=True)
        config = "[core]\n    analytics = false\n['remote \"local\"']\n    url = ../remote\n"
        (folder / ".dvc/config").write_text(config)
        subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    storage.share_storage(root, worktree)
    with open_repo(worktree) as repo:
        assert Path(repo.cache.local.path).is_relative_to(root / ".dvc/cache")
        assert Path(repo.config["remote"]["local"]["url"]) == root / "remote"
