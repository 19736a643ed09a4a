"""The folder for what is fetched once and shared by all projects."""

import os
from pathlib import Path


def folder() -> Path:
    """Return `$COHOBATE_CACHE`, or `~/.cache/cohobate`."""
    chosen = os.environ.get("COHOBATE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "cohobate"
