"""Shared by the benchmarks: the machine, a process for each variant, CPU time, peak memory."""

import ctypes
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def machine() -> dict[str, str]:
    """Return the processor, and the number format in which it is fast."""
    from cohobate.models import number_formats

    name = number_formats.native("cpu").number_format
    return {"processor": number_formats.processor(), "number_format": name}


def status(field: str) -> float:
    """Return a field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def at_rest() -> float:
    """Give freed memory back, forget the peak so far, and return what is resident, in MB."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def timed(step: Callable[[], Any], steps: int) -> dict[str, float]:
    """Return CPU and wall seconds of a step, and the peak above rest, in MB; the first is warm-up.

    The middle one of the steps counts: a noisy neighbour spoils the mean.
    """
    step()
    rest, seconds = at_rest(), []
    for _ in range(steps):
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        seconds.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = sorted(seconds)[len(seconds) // 2]
    return {"cpu_seconds": cpu, "wall_seconds": wall, "peak_mb": status("VmHWM") - rest}


def in_own_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script of this folder with one thread, and return the JSON of its last line."""
    (figures,) = in_own_processes(script, arguments, 1)
    return figures


def in_own_processes(script: str, arguments: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Run a script in several processes that `join_workers` joins; return the JSON of each."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "PYTHONWARNINGS": "ignore"}
    quiet |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    root, started = Path(__file__).parents[1], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(count):
            place: dict[str, Any] = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
            place |= {"LOCAL_WORLD_SIZE": count, "WORKERS_JOIN": f"file://{folder}/join"}
            places = {name: str(n) for name, n in place.items()} if count > 1 else {}
            environment = os.environ | threads | quiet | places | {"PYTHONPATH": str(root)}
            command = [sys.executable, script, *arguments]
            started.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
            )
        outputs = [process.communicate()[0] for process in started]
    if failed := [process.returncode for process in started if process.returncode]:
        raise SystemExit(f"{script} {' '.join(arguments)} failed with {failed[0]}")
    return [dict(json.loads(output.splitlines()[-1])) for output in outputs]


def join_workers() -> None:
    """Join the processes that `in_own_processes` started together; nothing where it is one."""
    import torch.distributed as dist

    if place := os.environ.get("WORKERS_JOIN"):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", init_method=place, rank=rank, world_size=size)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay out rows as text; numbers to two decimals."""
    cells = [[f"{x:.2f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)) for row in (head, *cells)
    ]
    return "\n".join(lines)
