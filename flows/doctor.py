"""`cohobate doctor`: what of this machine or folder would make a round fail, and how to mend it."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tasks import params, schema
from tasks.errors import UserError


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    what: str
    mend: str = ""


def examine(root: Path) -> list[Finding]:
    """Look at versions, params, the DVC folder, disk, memory and git; start nothing."""
    return [
        *_versions(),
        *_params(root),
        *_dvc(root),
        *_disk(root),
        *_memory(),
        *_git(root),
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
    from tasks import versioning

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
    import psutil

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
