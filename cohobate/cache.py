"""The folder for what is fetched once and shared by all projects."""

import os
from pathlib import Path

from cohobate.errors import UserError


def folder() -> Path:
    """Return `$COHOBATE_CACHE`, or `~/.cache/cohobate`.

    Raises:
        UserError: there is no home folder.
    """
    if chosen := os.environ.get("COHOBATE_CACHE"):
        return Path(chosen)
    try:
        return Path.home() / ".cache" / "cohobate"
    except RuntimeError:  # a container's user without a name
        fix = "export HOME=<a folder that you can write to>, or COHOBATE_CACHE"
        raise UserError("HOME is not set, and this user has no home folder", fix=fix) from None
