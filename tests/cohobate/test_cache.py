"""The shared cache on machines where it cannot be written, or where there is no home folder."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cohobate import cache
from cohobate.errors import UserError, from_os_error
from cohobate.models import hub
from tasks.collect import wordnet_release


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache on a file system that is mounted for reading alone."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("COHOBATE_CACHE", str(folder))
    open_, mkdir = Path.open, Path.mkdir

    def refusing(real: Any) -> Any:
        def wrapped(path: Path, *arguments: Any, **options: Any) -> Any:
            writes = real is mkdir or "w" in str(arguments)
            if writes and path.is_relative_to(folder) and not path.is_dir():
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return real(path, *arguments, **options)

        return wrapped

    monkeypatch.setattr(Path, "open", refusing(open_))
    monkeypatch.setattr(Path, "mkdir", refusing(mkdir))
    return folder


def test_what_is_cached_is_read_where_nothing_can_be_written(read_only: Path) -> None:
    with hub.file_lock(read_only / "model.lock"):
        assert not (read_only / "model.lock").exists()


def test_a_fetch_into_a_cache_that_cannot_be_written_names_the_variable(read_only: Path) -> None:
    with pytest.raises(UserError, match="Read-only file system") as refused:
        wordnet_release.database()
    assert "COHOBATE_CACHE" in refused.value.fix


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("COHOBATE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="HOME is not set"):
        cache.folder()


@pytest.mark.parametrize(
    ("number", "path", "fix"),
    [
        (errno.ENOSPC, "/big/file", "df -h /big/file"),
        (errno.EACCES, "/home/me/.cache/cohobate/x", "COHOBATE_CACHE"),
        (errno.ENOTDIR, "/home/me/.config/dvc", "export HOME"),
        (errno.EROFS, "/elsewhere/x", "ls -ld /elsewhere/x"),
    ],
)
def test_an_error_of_the_system_becomes_one_with_its_fix(
    number: int, path: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("COHOBATE_CACHE", raising=False)
    error = from_os_error(OSError(number, os.strerror(number), path))
    assert error and fix in error.fix and path in error.what


def test_an_error_that_is_no_matter_of_the_machine_stays_what_it_is() -> None:
    assert from_os_error(FileNotFoundError(errno.ENOENT, "no such file", "x")) is None
