"""Memory that is available on this machine, on its GPUs, and on GPUs that are known by name."""

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

GIB = 1 << 30
GPU_GIB: Mapping[str, float] = {
    "V100": 16, "T4": 16, "P100": 16, "L4": 24, "A10": 24, "A10G": 24, "L40S": 48, "A40": 48,
    "A100": 40, "A100-40G": 40, "A100-80G": 80, "H100": 80, "H200": 141, "H20": 96, "B200": 180,
    "GH200": 96,
}  # fmt: skip
"""GiB of the GPUs that Ray names in `accelerator_type`. Of cards that come in two sizes the smaller
one is meant; `resources.<stage>.gpu_memory_gb` overrules it."""


def available_on(device: str) -> int | None:
    """Return the bytes that are available on `device`; None where that is not known."""
    if not device.startswith("cuda"):
        return available_memory()
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes available to this process; None where the system does not say."""
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:  # a container's own limit; its page cache can be given up
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(stats["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return free


def gpus_of_this_machine() -> list[int]:
    """Return the free bytes of each GPU of this machine, also of those that Ray hides.

    Ray sets CUDA_VISIBLE_DEVICES to nothing for a stage that has no GPU, so torch sees none in
    preflight; the driver's own tool does.
    """
    if not (tool := shutil.which("nvidia-smi")):
        return []
    query = ["--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        reply = subprocess.run(
            [tool, *query], capture_output=True, text=True, timeout=20, check=True
        )
        return [int(line) << 20 for line in reply.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
