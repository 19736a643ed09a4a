"""Whether this machine has the room that the models alone will surely take.

A lower bound: activations, optimiser and rows come on top. What stages elsewhere have is not known
here. Nothing of it is recorded: it is a fact about the machine, not about the round.
"""

import shutil
from pathlib import Path

from tasks.errors import UserError
from tasks.progress import say

GIB = 1 << 30
_BYTES_STORED = 2 * 2  # bfloat16, in the project and in the cache of versions
_BYTES_ANSWERING = 2
_BYTES_TUNING = 4 + 4  # float32 weights, and gradients of them all


def check_capacity(parameters: list[int]) -> None:
    """Refuse models, given their numbers of weights, that cannot fit; say so where it is close.

    Raises:
        UserError: less disk or memory is free than the models take.
    """
    disk = shutil.disk_usage(Path.cwd()).free
    stored = _BYTES_STORED * sum(parameters)
    if disk < stored:
        raise UserError(
            f"the round's models take {stored / GIB:.1f} GiB on disk, {disk / GIB:.1f} are free",
            where=str(Path.cwd()),
            mend="free some space, or run in a folder on another disk",
        )
    memory = available_memory()
    if memory is None:
        return
    answering, tuning = (n * max(parameters) for n in (_BYTES_ANSWERING, _BYTES_TUNING))
    if memory < answering:
        raise UserError(
            f"the largest model takes {answering / GIB:.1f} GiB of memory even in bfloat16, "
            f"{memory / GIB:.1f} are available",
            mend="free some memory, or choose a smaller teacher",
        )
    if memory < tuning:
        say(
            f"memory is tight: tuning every weight of the largest model takes {tuning / GIB:.1f} "
            f"GiB, {memory / GIB:.1f} are available here"
        )


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes that this process could still take; None where the system does not say."""
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
    found = int(lines["MemAvailable"].split()[0]) * 1024
    try:  # a container's own limit; its page cache can be given up
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(found, limit - used + int(stats["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return found
