"""Errors that a person can fix."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT_THE_MACHINE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class UserError(Exception):
    """Something a person can fix: what happened, where, and the next command.

    `cohobate` and `python -m tasks` print it in three lines and exit non-zero; `--debug` adds the
    traceback.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)  # positional, so that it survives pickling
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


def from_os_error(error: OSError) -> UserError | None:
    """Return the error of a folder that cannot be written or a full disk; None for any other."""
    if error.errno not in _ABOUT_THE_MACHINE:
        return None
    path = str(error.filename or "")
    home = os.environ.get("HOME") or "~"
    cache = os.environ.get("COHOBATE_CACHE") or f"{home}/.cache/cohobate"
    if error.errno in _FULL:
        fix = f"free space there: df -h {path or '.'}; dvc gc --workspace"
    elif path.startswith(cache):
        fix = "export COHOBATE_CACHE=<a folder that you can write to>"
    elif path.startswith(home):
        fix = "export HOME=<a folder that you can write to>"
    else:
        fix = f"ls -ld {path}   (the folder must exist, and be yours to write)"
    return UserError(f"{os.strerror(error.errno)}: {path}", where=path, fix=fix)


def _rebuild(kind: type[UserError], what: str, where: str, fix: str) -> UserError:
    return kind(what, where=where, fix=fix)
