"""Where the objects of DVC lie: cache, remotes, and what worktrees and nodes are told of them."""

import os
import shutil
from pathlib import Path
from typing import Any

from cohobate.dvc_bridge.versioning import (
    configuration,
    has_remote,
    locked_repo,
    open_repo,
    patiently,
    writers,
)
from cohobate.errors import UserError


def push(root: Path, addresses: list[str]) -> int:
    """Copy the outputs of stages, and the run-cache, to the default remote; return the files sent.

    Zero without a default remote.

    Raises:
        UserError: the remote was not reached, however often it was asked.
    """
    from botocore.exceptions import BotoCoreError

    with open_repo(root) as repo:
        if not has_remote(repo):
            return 0
        try:
            sent: int = repo.push(targets=addresses, run_cache=True)
        except (OSError, BotoCoreError) as error:
            fix = "check that the remote answers (cohobate doctor), then run again"
            raise UserError(f"not pushed: {error}", where=".dvc/config", fix=fix) from error
        return sent


def bring_inputs(root: Path, address: str) -> None:
    """Have what a stage reads in the workspace: what other stages wrote, and what DVC tracks."""
    with locked_repo(root) as repo:
        (stage,) = repo.stage.collect(address)
        read = [(dep.fs_path, out.fs_path) for dep in stage.deps for out in writers(repo, dep)]
        # part of an output, or a folder that outputs lie in, which is none itself: the narrower
        wanted = sorted({max(paths, key=len) for paths in read})
        if wanted:
            patiently(lambda: repo.pull(targets=wanted, force=True))


def bring_outputs(root: Path, addresses: list[str]) -> None:
    """Have the outputs of stages in the workspace, as dvc.lock names them."""
    with locked_repo(root) as repo:
        stages = [stage for address in addresses for stage in repo.stage.collect(address)]
        absent = [stage.addressing for stage in stages if not all(o.exists for o in stage.outs)]
        if absent:
            patiently(lambda: repo.pull(targets=absent, force=True))


def bring(root: Path, paths: list[Path]) -> None:
    """Have the tracked `paths` in the workspace, from the cache or the remote."""
    with open_repo(root) as repo:
        patiently(lambda: repo.pull(targets=[f"{root / path}.dvc" for path in paths]))


def track(root: Path, path: Path) -> None:
    """Let DVC keep a file or folder that no stage writes: `<path>.dvc` is what git then holds."""
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
    """Return a path that DVC writes relative to its file: it can write no other than ASCII."""
    return os.path.relpath(path)


def default_remote(root: Path) -> str | None:
    """Return the name of the remote that `push` uses."""
    with open_repo(root) as repo:
        name: str | None = repo.config["core"].get("remote")
        return name


def remotes(root: Path) -> dict[str, dict[str, Any]]:
    """Return where the project's remotes are, by name, without what must stay secret."""
    public = ("url", "endpointurl", "region", "verify", "version_aware", "profile")
    with open_repo(root) as repo:
        config: dict[str, Any] = repo.config["remote"]
        return {
            name: {key: value for key, value in remote.items() if key in public}
            for name, remote in config.items()
        }


def absent_from_remote(root: Path) -> list[str]:
    """Return what of the current dvc.lock and .dvc files the default remote does not have."""
    with open_repo(root) as repo:
        found: dict[str, str] = repo.status(cloud=True) if has_remote(repo) else {}
        return sorted(name for name, state in found.items() if state != "deleted")


def reach_default_remote(root: Path) -> str | None:
    """Look whether the default remote answers; return its address, or None without one.

    Raises:
        UserError: it does not answer, or refuses.
    """
    with open_repo(root) as repo:
        if not has_remote(repo):
            return None
        place = repo.cloud.get_remote_odb()
        try:
            place.fs.exists(place.path)
        except Exception as error:  # each file system has its own
            raise UserError(
                f"{place.path} does not answer: {error}",
                where=".dvc/config",
                fix="dvc remote list",
            ) from error
        return str(place.fs.unstrip_protocol(place.path))
