"""`make` finds a Python, or says before it installs anything what the machine lacks."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_project import ROOT

TOOLS = ("uname", "git", "grep", "npm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of commands, as the only one on the PATH: all that is needed, but no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or "/bin/true")
    return folder


def script(name: str, *words: str, path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(ROOT / "infra" / name), *words],
        cwd=ROOT,
        env={"PATH": str(path), "HOME": str(path), **env},
        capture_output=True,
        text=True,
        check=False,
    )


def command(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_a_name_that_does_not_run_is_passed_over_for_a_python_that_does(path: Path) -> None:
    assert script("find_python.sh", path=path).stdout == ""
    command(path, "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    command(path, "python3.12", "exit 1")  # one without venv
    python = command(path, "python3.13", f'exec {sys.executable} "$@"')
    assert script("find_python.sh", path=path).stdout.strip() == str(python)


def test_a_machine_with_all_passes_in_silence(path: Path) -> None:
    done = script("check_setup.sh", sys.executable, "", "data", path=path)
    assert done.returncode == 0 and "error" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "words", "message"),
    [
        ("", ("", "", ""), "uv python install"),
        ("", ("/bin/false", "", ""), "is no Python 3.11, 3.12 or 3.13"),
        ("git", (sys.executable, "", ""), "git is not installed"),
        ("npm", (sys.executable, "", "data"), "install npm"),
    ],
)
def test_what_is_missing_is_said_with_its_fix(
    path: Path, missing: str, words: tuple[str, ...], message: str
) -> None:
    (path / (missing or "none")).unlink(missing_ok=True)
    done = script("check_setup.sh", *words, path=path)
    assert done.returncode == 1
    assert message in done.stderr and "fix:" in done.stderr


def test_data_that_is_cached_needs_neither_npm_nor_apt(path: Path, tmp_path: Path) -> None:
    (path / "npm").unlink()
    (tmp_path / "wordnet-3.1").mkdir()
    (tmp_path / "wordnet-3.1/data.noun").touch()
    done = script(
        "check_setup.sh", sys.executable, "", "data", path=path, COHOBATE_CACHE=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr


def test_a_lock_of_another_platform_is_refused(path: Path) -> None:
    (path / "uname").unlink()
    command(path, "uname", 'test "$1" = -s && echo Linux || echo aarch64')
    lock = "infra/requirements-ci.txt"
    done = script("check_setup.sh", sys.executable, lock, "", path=path)
    assert done.returncode == 1
    assert "CPython 3.11 on Linux x86_64" in done.stderr and f"without LOCK={lock}" in done.stderr


@pytest.mark.skipif(
    platform.machine() != "x86_64" or sys.version_info[:2] != (3, 11), reason="lock"
)
def test_the_lock_is_taken_on_its_own_platform(path: Path) -> None:
    lock = "infra/requirements-ci.txt"
    done = script("check_setup.sh", sys.executable, lock, "", path=path)
    assert done.returncode == 0, done.stderr


def test_make_stops_before_it_installs_where_there_is_no_python(path: Path, tmp_path: Path) -> None:
    if not (make := shutil.which("make")):
        pytest.skip("no make here")
    for tool in ("sh", "cat"):
        (path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        [make, "setup", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        env={"PATH": str(path), "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "no Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "venv").exists()
