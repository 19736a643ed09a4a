"""The device that a stage computes on, and the memory that one of its workers has there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cohobate.models import checkpoints
from cohobate.training.device_memory import (
    GIB,
    GPU_GIB,
    available_on,
    gpus_of_this_machine,
)
from cohobate.training.distributed import gpus_of_cluster


@dataclass(frozen=True)
class Device:
    """What one worker of a stage has."""

    kind: str
    """`cpu` or `cuda`."""
    available: int | None
    """Bytes for one worker; None where nothing here says how many."""
    count: int | None = None
    """GPUs there are; None where nothing here says."""

    @property
    def label(self) -> str:
        """The device in a word or two."""
        kind = "GPU" if self.kind == "cuda" else "CPU"
        return f"{self.count} {kind}s" if self.count and self.count > 1 else kind


def entry_of(stage: str, resources: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of a stage in `resources`: of its item, or of its name."""
    return resources.get(stage) or resources.get(stage.partition("@")[0]) or {}


def device_of(stage: str, resources: Mapping[str, Any], workers: int = 1) -> Device:
    """Return the device of a stage, such as `train@kd`.

    A stage that asks Ray for a GPU has one, also where this process sees none: Ray hides the GPUs
    from a stage that asks for none, as preflight is. Where several workers train, each has a GPU if
    the cluster has any.

    Args:
        stage: its address.
        resources: the section `resources` of params.yaml.
        workers: processes that train together.
    """
    entry = entry_of(stage, resources)
    gpus = float(entry.get("gpus") or 0)
    offered = gpus_of_cluster()
    here = checkpoints.accelerator()
    if gpus or here != "cpu" or (workers > 1 and offered):
        count = sum(offered.values()) or None
        return Device("cuda", _of_gpu(entry, offered, here, min(1.0, gpus or 1.0)), count)
    if entry.get("memory_gb"):
        return Device("cpu", int(float(entry["memory_gb"]) * GIB) // workers)
    memory = available_on("cpu")
    return Device("cpu", None if memory is None else memory // workers)


def _of_gpu(
    entry: Mapping[str, Any], offered: Mapping[str, int], here: str, share: float
) -> int | None:
    """Return the bytes of a stage's GPU: as params say, as torch or the driver sees, by its name.

    `share`: of a GPU that the stage asks for.
    """
    if entry.get("gpu_memory_gb"):
        memory: float | None = float(entry["gpu_memory_gb"]) * GIB
    elif here != "cpu":
        memory = available_on(here)
    elif kinds := [GPU_GIB[kind] for kind in offered if kind in GPU_GIB]:
        memory = min(kinds) * GIB
    else:
        memory = min(gpus_of_this_machine(), default=None)
    return None if memory is None else int(share * memory)
