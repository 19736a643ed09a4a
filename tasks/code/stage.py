"""Fingerprints of the code of each stage, without comments and docstrings.

In:  cohobate, tasks
Out: data/code/<stage>.json, for each module that the stage imports what its code is:

    {"cohobate.data.records": "4f0c…", "tasks.filter.stage": "91aa…", …}

A stage depends on its file here and not on the code itself: an edit of a comment, or of a module
that it does not import, writes the same file and reruns nothing.
"""

from pathlib import Path

from cohobate.code_fingerprint import fingerprints
from cohobate.data.records import write_json
from tasks.signatures import stage_names

CODE = Path("data/code")


def code_of(stage: str, root: Path = Path()) -> dict[str, str]:
    """Return the fingerprints of a stage's code, by module."""
    return fingerprints(f"tasks.{stage}.stage", root)


def run() -> None:
    """Write the fingerprints of every stage's code."""
    for stage in stage_names():
        write_json(CODE / f"{stage}.json", code_of(stage))
