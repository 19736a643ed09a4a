"""`cohobate doctor`: what of this machine or folder would make a round fail, and how to mend it."""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from flows import exposure
from tasks import params, schema
from tasks.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str
    mend: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at versions, params, locks, remote, servers, disk, memory and clock; start nothing."""
    return [
        *_versions(),
        *_params(root),
        *_dvc(root),
        *_disk(root),
        *_memory(),
        *_git(root),
        *_locks(root),
        *_remote(root),
        *_exposure(),
        *_services(root),
        *_clock(),
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
            wrong.append(f"{requirement.name} {found} (wanted {requirement.specifier})")
    if wrong:
        yield Finding(False, "packages: " + ", ".join(wrong), "rm .venv/ready && make setup")
    else:
        yield Finding(True, "packages: the versions that were seen to work together")


def _params(root: Path) -> Iterator[Finding]:
    try:
        schema.check(params.load(root / params.PARAMS))
        yield Finding(True, "params.yaml: every key is known")
    except UserError as error:
        yield Finding(False, f"params.yaml: {error.what}", error.mend)


def _dvc(root: Path) -> Iterator[Finding]:
    from tasks.lineage import versioning

    try:
        count = len(versioning.stages(root))
        yield Finding(True, f"dvc.yaml and dvc.lock: {count} stages")
    except UserError as error:
        yield Finding(False, error.what, error.mend)


def _disk(root: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(root).free / 2**30
    enough = free > 5
    mend = "" if enough else "dvc gc --workspace   (drops what no current file needs)"
    yield Finding(enough, f"disk: {free:.0f} GiB free (a default round takes about 3)", mend)


def _memory() -> Iterator[Finding]:
    free = psutil.virtual_memory().available / 2**30
    enough = free > 6
    mend = "" if enough else "close something: the default round's peak is about 5 GiB"
    yield Finding(enough, f"memory: {free:.0f} GiB available", mend)


def _git(root: Path) -> Iterator[Finding]:
    done = subprocess.run(
        ["git", "status", "--porcelain", "dvc.lock"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        yield Finding(False, "git: this folder is not a git repository", "git init")
    elif done.stdout.startswith("UU"):
        mend = "git checkout --theirs dvc.lock && dvc repro"
        yield Finding(False, "dvc.lock has conflicts", mend)
    else:
        yield Finding(True, "git: a repository")


def _locks(root: Path) -> Iterator[Finding]:
    path = root / ".dvc/tmp/rwlock"
    try:
        holders = json.loads(path.read_text() or "{}") if path.exists() else {}
    except ValueError:
        mend = "when no other dvc or cohobate runs here: rm .dvc/tmp/rwlock"
        yield Finding(False, "DVC's lock file is torn: a process was killed while it wrote", mend)
        return
    pids = {info["pid"] for held in holders.values() for info in _holders(held)}
    dead = sorted(pid for pid in pids if not psutil.pid_exists(pid))
    if dead:
        what = f"DVC's locks are held by processes that are gone ({dead[0]}): DVC clears them"
        yield Finding(True, what)
    else:
        yield Finding(True, "locks: none left behind")


def _holders(held: Any) -> list[Any]:
    found = [held.get("write") or {}, *(held.get("read") or [])] if isinstance(held, dict) else []
    return [info for info in found if "pid" in info]


def _remote(root: Path) -> Iterator[Finding]:
    from tasks.lineage import storage

    try:
        where = storage.reach_default_remote(root)
    except UserError as error:
        yield Finding(False, f"DVC remote: {error.what}", error.mend)
        return
    mend = "dvc remote add --default store s3://bucket/prefix"
    said = f"DVC remote: {where}" if where else "DVC remote: none; nothing is pushed"
    yield Finding(bool(where), said, "" if where else mend)


def _exposure() -> Iterator[Finding]:
    try:
        exposure.check()
        yield Finding(True, "servers: on loopback, or with authentication")
    except UserError as error:
        yield Finding(False, error.what, error.mend)


def _services(root: Path) -> Iterator[Finding]:
    from flows.services import SERVICES, running_services

    if (root / SERVICES).exists() and not running_services(root):
        yield Finding(False, "some of what `cohobate up` started has died", "cohobate up")


def _clock() -> Iterator[Finding]:
    """Compare with the server that decides when a scheduled round is due."""
    api = os.environ.get("PREFECT_API_URL")
    if not api:
        return
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            there = parsedate_to_datetime(answer.headers["Date"])
    except (OSError, TypeError, ValueError):
        yield Finding(False, f"Prefect does not answer at {api}", "cohobate up")
        return
    apart = abs((datetime.now(UTC) - there).total_seconds())
    mend = "" if apart < 5 else "timedatectl set-ntp true"
    yield Finding(apart < 5, f"clock: {apart:.0f} s from the Prefect server's", mend)
