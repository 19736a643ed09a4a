"""Whether this machine has the room that the models alone will surely take.

A lower bound; what training and the teacher's stages take is in memory.py. What stages elsewhere
have is not known here. Nothing of it is recorded: it is a fact about the machine, not about the
round.
"""

import shutil
from pathlib import Path

from tasks.errors import UserError
from tasks.learning.memory import GIB, available_memory
from tasks.progress import say

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
