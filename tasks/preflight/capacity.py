"""Capacity check: disk and memory for the models alone, a lower bound.

Memory is that of the device, the GPU where there is one. The needs of training and of the teacher's
stages are in memory.py. Other machines are not known here. Nothing is recorded: these are facts of
the machine, not of the round.
"""

import shutil
from pathlib import Path

from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import BYTES, native
from cohobate.progress import say
from cohobate.training.device_memory import GIB, available_on

_BYTES_STORED = 2 * 2  # bfloat16, in the project and in the cache of versions
_BYTES_TUNING = 4 + 4  # float32 weights, and gradients of them all


def check_capacity(parameters: list[int]) -> None:
    """Refuse models, by their parameter counts, that cannot fit; warn where it is close.

    Raises:
        UserError: less disk or memory is free than the models take.
    """
    disk = shutil.disk_usage(Path.cwd()).free
    stored = _BYTES_STORED * sum(parameters)
    if disk < stored:
        raise UserError(
            f"the models need {stored / GIB:.1f} GiB of disk, {disk / GIB:.1f} GiB available",
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
