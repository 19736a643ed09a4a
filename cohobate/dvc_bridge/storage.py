"""DVC's cache and remotes: push, pull and track files, and configure worktrees and nodes."""

import os
import shutil
from pathlib import Path
from typing import Any

from cohobate.dvc_bridge.private_calls import configuration
from cohobate.dvc_bridge.versioning import (
    has_remote,
    locked_repo,
    open_repo,
    outputs_at,
    retry_download,
)
from cohobate.errors import UserError


def push(root: Path, addresses: list[str]) -> int:
    """Copy the outputs of stages, and the run-cache, to the default remote; return the files sent.

    Zero without a default remote.

    Raises:
        UserError: the remote was not reached, after all retries.
    """
    from botocore.exceptions import BotoCoreError

    with open_repo(root) as repo:
        if not has_remote(repo):
            return 0
        try:
            sent: int = repo.push(targets=addresses, run_cache=True)
        except (OSError, BotoCoreError) as error:
            fix = "check the remote with cohobate doctor, then repeat the command"
            raise UserError(f"push failed: {error}", where=".dvc/config", fix=fix) from error
        return sent


def pull_inputs(root: Path, address: str) -> None:
    """Bring a stage's inputs into the workspace: other stages' outputs, and tracked files."""
    with locked_repo(root) as repo:
        (stage,) = repo.stage.collect(address)
        inputs = [(dep.fs_path, out.fs_path) for dep in stage.deps for out in outputs_at(repo, dep)]
        # A dependency may be part of an output, or a folder that holds outputs: pull the narrower.
        paths = sorted({max(pair, key=len) for pair in inputs})
        if paths:
            retry_download(lambda: repo.pull(targets=paths, force=True))


def pull_outputs(root: Path, addresses: list[str], *, without: str = "") -> None:
    """Bring the outputs of stages into the workspace, as dvc.lock records them.

    Args:
        root: the project.
        addresses: the stages.
        without: a folder whose outputs are not brought.
    """
    with locked_repo(root) as repo:
        stages = [stage for address in addresses for stage in repo.stage.collect(address)]
        outs = [out for stage in stages for out in stage.outs if out.use_cache and not out.exists]
        # absolute: DVC takes a path as from this process's folder, and a round has one of its own
        paths = [root.resolve() / out.def_path for out in outs]
        absent = [
            str(path)
            for path in paths
            if not without or root.resolve() / without not in path.parents
        ]
        if absent:
            retry_download(lambda: repo.pull(targets=absent, force=True))


def pull_tracked(root: Path, paths: list[Path]) -> None:
    """Bring tracked files or folders into the workspace, from the cache or the remote."""
    with open_repo(root) as repo:
        retry_download(lambda: repo.pull(targets=[f"{root / path}.dvc" for path in paths]))


def track(root: Path, path: Path) -> None:
    """Let DVC keep a file or folder that no stage writes; git then keeps `<path>.dvc`."""
    with open_repo(root) as repo:
        repo.add(str(root / path))
        if has_remote(repo):
            repo.push(targets=[f"{root / path}.dvc"])


def share_storage(root: Path, worktree: Path) -> None:
    """Let a worktree use the cache and the remotes of the project at `root`."""
    own = root / ".dvc/config.local"
    if own.exists():
        shutil.copyfile(own, worktree / ".dvc/config.local")
    with open_repo(root) as repo:
        remotes = {name: remote["url"] for name, remote in repo.config["remote"].items()}
        # a relative address of a folder would be another folder, seen from the worktree
        local = {name: url for name, url in remotes.items() if "://" not in url}
        cache = repo.config["cache"].get("dir") or str(root / ".dvc/cache")
    with open_repo(worktree) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = _relative(cache)
        for name, url in local.items():
            config["remote"].setdefault(name, {})["url"] = _relative(url)


def make_standalone(
    folder: Path, remotes: dict[str, dict[str, Any]], default: str, cache: Path
) -> None:
    """Make a copy of the project's files a DVC workspace of its own, without git."""
    (folder / ".dvc").mkdir(exist_ok=True)
    with configuration(folder).edit("local") as local:
        local["core"] |= {"no_scm": True, "remote": default}
        local["cache"]["dir"] = _relative(cache)
        local["remote"] |= remotes


def _relative(path: str | Path) -> str:
    """Return a relative path: DVC writes it so, and can write no other characters than ASCII."""
    return os.path.relpath(path)


def default_remote(root: Path) -> str | None:
    """Return the name of the remote that `push` uses."""
    with open_repo(root) as repo:
        name: str | None = repo.config["core"].get("remote")
        return name


def remotes(root: Path) -> dict[str, dict[str, Any]]:
    """Return the configuration of each remote by name, without credentials."""
    public = ("url", "endpointurl", "region", "verify", "version_aware", "profile")
    with open_repo(root) as repo:
        config: dict[str, Any] = repo.config["remote"]
        return {
            name: {key: value for key, value in remote.items() if key in public}
            for name, remote in config.items()
        }


def absent_from_remote(root: Path) -> list[str]:
    """Return the outputs and tracked files of this workspace that the default remote lacks."""
    with open_repo(root) as repo:
        status: dict[str, str] = repo.status(cloud=True) if has_remote(repo) else {}
        return sorted(name for name, state in status.items() if state != "deleted")


def reach_default_remote(root: Path) -> str | None:
    """Return the address of the default remote once it replied; None where there is none.

    Raises:
        UserError: it does not reply, or refuses.
    """
    with open_repo(root) as repo:
        if not has_remote(repo):
            return None
        remote = repo.cloud.get_remote_odb()
        try:
            remote.fs.exists(remote.path)
        except Exception as error:  # each file system raises its own
            raise UserError(
                f"{remote.path} does not reply: {error}",
                where=".dvc/config",
                fix="check the address and the credentials: dvc remote list",
            ) from error
        return str(remote.fs.unstrip_protocol(remote.path))
