"""Whether this machine has the room that the models alone will surely take.

Memory is that of the device a model goes to: of the GPU where there is one. This is a lower bound;
what training and the teacher's stages take is in memory.py. What stages elsewhere have is not known
here. Nothing of it is recorded: it is a fact about the machine, not about the round.
"""

import shutil
from pathlib import Path

from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import BYTES, native
from cohobate.progress import say
from cohobate.training.memory import GIB, available_on

_BYTES_STORED = 2 * 2  # bfloat16, in the project and in the cache of versions
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
            fix="free some space, or run in a folder on another disk",
        )
    device = checkpoints.accelerator()
    memory, number_format = available_on(device), native(device).number_format
    if memory is None:
        return
    kind = "GPU memory" if device.startswith("cuda") else "memory"
    answering, tuning = (n * max(parameters) for n in (BYTES[number_format], _BYTES_TUNING))
    if memory < answering:
        raise UserError(
            f"the largest model needs {answering / GIB:.1f} GiB of {kind} in {number_format}, "
            f"{memory / GIB:.1f} GiB available",
            fix=f"free some {kind}, or choose a smaller teacher",
        )
    if memory < tuning:
        say(
            f"{kind} is tight: tuning every weight of the largest model needs {tuning / GIB:.1f} "
            f"GiB, {memory / GIB:.1f} GiB available"
        )
