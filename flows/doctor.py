"""`cohobate doctor`: what on this machine or in this folder would make a round fail."""

import os
import shutil
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from cohobate import cache, params
from cohobate.errors import UserError
from cohobate.proxies import proxies
from flows import auth_check, local_ray, params_schema, prefect_server
from flows.git import git


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    ok: bool
    what: str
    fix: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at versions, params, servers, locks, disk, memory, number formats; start nothing."""
    return [
        *_versions(),
        *_params(root),
        *_dvc(root),
        *_disk(root),
        *_memory(),
        *_number_formats(),
        *_folders(),
        *_git(root),
        *_locks(root),
        *_remote(root),
        *_exposure(),
        *_services(root),
        *_network(),
        *_prefect(),
    ]


def _versions() -> Iterator[Finding]:
    wrong = []
    for line in metadata.requires("cohobate") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needs {requirement.specifier})")
    if wrong:
        yield Finding(False, "packages: " + ", ".join(wrong), "rm .venv/ready && make setup")
    else:
        yield Finding(True, "packages: all versions are supported")


def _params(root: Path) -> Iterator[Finding]:
    try:
        params_schema.check(params.load(root / params.PARAMS))
        yield Finding(True, "params.yaml: every key is known")
    except UserError as error:
        yield Finding(False, f"params.yaml: {error.what}", error.fix)


def _dvc(root: Path) -> Iterator[Finding]:
    from cohobate.dvc_bridge import versioning

    try:
        count = len(versioning.stages(root))
        yield Finding(True, f"dvc.yaml and dvc.lock: {count} stages")
    except UserError as error:
        yield Finding(False, error.what, error.fix)


def _disk(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free / 2**30
    enough = free > 5
    fix = "" if enough else "dvc gc --workspace   (drops what no current file needs)"
    yield Finding(enough, f"disk: {free:.0f} GiB free (a default round needs about 3)", fix)


def _memory() -> Iterator[Finding]:
    free = psutil.virtual_memory().available / 2**30
    enough = free > 6
    fix = "" if enough else "close other programs: the default round needs about 5 GiB"
    yield Finding(enough, f"memory: {free:.0f} GiB available", fix)


def _number_formats() -> Iterator[Finding]:
    """Name the number format that `precision: auto` means on each device, and the speeds here."""
    from cohobate.models import checkpoints, number_formats
    from cohobate.training.device_memory import available_on

    speeds = ", ".join(f"{s:.0f} in {name}" for name, s in number_formats.gflops().items())
    try:
        for device in dict.fromkeys(("cpu", checkpoints.accelerator())):
            more = f"GFLOP/s a core: {speeds}"
            if device != "cpu":
                more = f"{(available_on(device) or 0) / 2**30:.0f} GiB free"
            yield Finding(True, f"number format of {number_formats.describe(device)}; {more}")
    except UserError as error:
        yield Finding(False, error.what, error.fix)


def _git(root: Path) -> Iterator[Finding]:
    try:
        prefix = git(root, "rev-parse", "--show-prefix")
        conflicts = git(root, "status", "--porcelain", "dvc.lock").startswith("UU")
    except UserError as error:
        yield Finding(False, f"git: {error.what}", error.fix)
        return
    if conflicts:
        fix = "git checkout --theirs dvc.lock && dvc repro"
        yield Finding(False, "dvc.lock has conflicts", fix)
    else:
        yield Finding(True, f"git: a repository; this project is {prefix or 'its top folder'}")


def _folders() -> Iterator[Finding]:
    """Look at the folders outside the project that a round writes to."""
    try:
        folder = cache.folder()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        usable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
        fix = "" if usable else "export COHOBATE_CACHE=<a folder that you can write to>"
        yield Finding(usable, f"cache: {folder}{'' if usable else ' cannot be written'}", fix)
        temporary = local_ray.environment()["RAY_TMPDIR"]
        yield Finding(True, f"temporary files of Ray: {temporary}")
    except UserError as error:
        yield Finding(False, error.what, error.fix)


def _locks(root: Path) -> Iterator[Finding]:
    from cohobate.dvc_bridge.stale_lock import holders

    if (found := holders(root)) is None:
        fix = "when no other dvc or cohobate runs here: rm .dvc/tmp/rwlock"
        yield Finding(
            False, "DVC's list of locks is incomplete: a process was killed while it wrote it", fix
        )
        return
    live = sorted({f"{held.command} (process {held.pid})" for held in found if held.alive})
    dead = sorted({held.pid for held in found if not held.alive})
    if live:
        paths = ", ".join(sorted({_below(root, held.path) for held in found if held.alive}))
        yield Finding(True, f"locks: {', '.join(live)} is working on {paths}")
    if dead:
        ended = ", ".join(map(str, dead))
        yield Finding(
            True, f"locks: left by processes that ended ({ended}); the next run removes them"
        )
    if not found:
        yield Finding(True, "locks: none is held")


def _below(root: Path, path: str) -> str:
    return os.path.relpath(path, root.resolve())


def _remote(root: Path) -> Iterator[Finding]:
    from cohobate.dvc_bridge import storage

    try:
        where = storage.reach_default_remote(root)
    except UserError as error:
        yield Finding(False, f"DVC remote: {error.what}", error.fix)
        return
    fix = "dvc remote add --default store s3://bucket/prefix"
    message = f"DVC remote: {where}" if where else "DVC remote: none; nothing is pushed"
    yield Finding(bool(where), message, "" if where else fix)


def _exposure() -> Iterator[Finding]:
    try:
        auth_check.check()
        yield Finding(True, "servers: on loopback, or with authentication")
    except UserError as error:
        yield Finding(False, error.what, error.fix)


def _services(root: Path) -> Iterator[Finding]:
    from flows.services import SERVICES, running_services

    if (root / SERVICES).exists() and not running_services(root):
        yield Finding(
            False, "some of the servers that `cohobate up` started have died", "cohobate up"
        )


def _network() -> Iterator[Finding]:
    if named := proxies(os.environ):
        yield Finding(True, f"proxy: {', '.join(named)}; not for loopback (NO_PROXY is extended)")


def _prefect() -> Iterator[Finding]:
    """Look at the server of PREFECT_API_URL: its clock decides when a scheduled round is due."""
    if not (api := os.environ.get("PREFECT_API_URL")):
        return
    try:
        prefect_server.check()
        with urllib.request.urlopen(f"{api}/health", timeout=5) as reply:
            there = parsedate_to_datetime(reply.headers["Date"])
    except UserError as error:
        yield Finding(False, error.what, error.fix)
        return
    except (OSError, TypeError, ValueError):
        yield Finding(True, f"Prefect: {prefect_server.public(api)}; its clock is not known")
        return
    apart = abs((datetime.now(UTC) - there).total_seconds())
    fix = "" if apart < 5 else "timedatectl set-ntp true"
    yield Finding(apart < 5, f"clock: {apart:.0f} s from the Prefect server's", fix)
