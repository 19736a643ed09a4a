"""The one kind of error that is meant for a person."""

import errno
import os

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT_THE_MACHINE = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class UserError(Exception):
    """Something a person can mend: what happened, where, and the next command.

    Both doors print it in three lines and exit non-zero; a traceback needs `--debug`.
    """

    def __init__(self, what: str, *, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)  # positional, so that it survives pickling
        self.what, self.where, self.mend = what, where, mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  next:  {self.mend}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.mend)


def from_os_error(error: OSError) -> UserError | None:
    """Return the error of a folder that cannot be written or a full disk; None for any other."""
    if error.errno not in _ABOUT_THE_MACHINE:
        return None
    path = str(error.filename or "")
    home = os.environ.get("HOME") or "~"
    cache = os.environ.get("COHOBATE_CACHE") or f"{home}/.cache/cohobate"
    if error.errno in _FULL:
        mend = f"free space there: df -h {path or '.'}; dvc gc --workspace"
    elif path.startswith(cache):
        mend = "export COHOBATE_CACHE=<a folder that you can write to>"
    elif path.startswith(home):
        mend = "export HOME=<a folder that you can write to>"
    else:
        mend = f"ls -ld {path}   (the folder must exist, and be yours to write)"
    return UserError(f"{os.strerror(error.errno)}: {path}", where=path, mend=mend)


def _rebuild(kind: type[UserError], what: str, where: str, mend: str) -> UserError:
    return kind(what, where=where, mend=mend)
