"""Git commands: their output, or an error with its fix."""

import subprocess
from pathlib import Path

from cohobate.errors import UserError

_IDENTITY = {"user.name": "cohobate", "user.email": "cohobate@localhost"}
"""Committer of rounds where git's configuration names none."""


def git(folder: Path, *words: str, given: str | None = None, check: bool = True) -> str:
    """Run git and return what it prints; nothing where it fails and `check` is off.

    Raises:
        UserError: git failed, is not installed, or refuses the folder.
    """
    done = _run(folder, [*_identity(folder), *words], given)
    if done.returncode == 0:
        return done.stdout.strip()
    if not check and not _refuses(done.stderr):
        return ""
    raise _error(folder, words[0], done.stderr.strip())


def _run(
    folder: Path, words: list[str], given: str | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *words],
            cwd=folder,
            input=given,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        fix = "install git: https://git-scm.com/downloads"
        raise UserError("git is not installed", where="PATH", fix=fix) from None


def _identity(folder: Path) -> list[str]:
    """Return options that name the committer, for what git's configuration does not."""
    named = _run(folder, ["config", "--name-only", "--get-regexp", r"^user\."]).stdout.split()
    missing = [f"{key}={value}" for key, value in _IDENTITY.items() if key not in named]
    return [word for setting in missing for word in ("-c", setting)]


def _refuses(message: str) -> bool:
    return "dubious ownership" in message or "not a git repository" in message


def _error(folder: Path, command: str, message: str) -> UserError:
    where = str(folder)
    if "dubious ownership" in message:
        start = message.find("'") + 1
        top = message[start : message.find("'", start)]
        what = "git refuses this repository: its folder belongs to another user"
        return UserError(what, where=top, fix=f"git config --global --add safe.directory '{top}'")
    if "not a git repository" in message:
        what = "this folder is not in a git repository, which keeps the rounds"
        fix = "git init && git add --all && git commit -m 'the project'"
        return UserError(what, where=where, fix=fix)
    return UserError(f"git {command}: {message}", where=where, fix="git status")
