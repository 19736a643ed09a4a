"""Number formats: which of them a device computes in fast, and so what `auto` in params means.

    precision: auto         # bfloat16 with AMX or a GPU since 2020, float32 with AVX2
    precision: float32      # forced, as is bfloat16

Flags decide where they are clear. Where they are not (AVX-512 without AMX, ARM with bfloat16) the
format that they suggest is kept unless a short measurement finds the other one clearly faster. The
figures are kept in `$COHOBATE_CACHE`, so that all stages and workers of a machine agree.

`COHOBATE_PRECISION=float32` decides `auto` on every device. `ONEDNN_MAX_CPU_ISA=AVX2` with
`ATEN_CPU_CAPABILITY=avx2` makes a newer processor as slow in bfloat16 as one with AVX2.
"""

import contextlib
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from cohobate import cache
from cohobate.errors import UserError

NumberFormat = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]
"""Number format of weights or matrix products as params give it; `auto`: the device's own."""
BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2}
"""Of one number."""
FORCED = "COHOBATE_PRECISION"
CLEARLY_FASTER = 1.5
"""Ratio of the speeds beyond which a measurement overrules what the flags suggest."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that keep oneDNN and torch from newer instructions."""
_SHAPE = (256, 576, 1536)  # rows, inputs and outputs of a product in the packaged teacher's MLP
_BARRED = {  # by the values of ONEDNN_MAX_CPU_ISA
    ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10_1_512"): frozenset({"amx_bf16"}),
    ("AVX512_CORE", "AVX512_CORE_VNNI"): frozenset({"amx_bf16", "avx512_bf16"}),
    ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"): frozenset(
        {"amx_bf16", "avx512_bf16", "avx512_f"}
    ),
}


class Native(NamedTuple):
    """The number format in which a device is fast, and how that is known."""

    number_format: NumberFormat
    reason: str
    settled: bool = True
    """Whether the flags leave no doubt; else a measurement can overrule them."""


_RULES = {  # the first whose flag a processor has
    "amx_bf16": Native("bfloat16", "the processor has AMX"),
    "avx512_bf16": Native("bfloat16", "the processor has AVX-512 with bfloat16", settled=False),
    # oneDNN converts there: bfloat16 is 3 to 5 times as slow as float32, measured
    "avx512_f": Native("float32", "the processor has AVX-512 without bfloat16", settled=False),
    # 12 to 38 times as slow, measured
    "avx2": Native("float32", "the processor has AVX2 without bfloat16"),
    "sve_bf16": Native("bfloat16", "the processor has SVE with bfloat16", settled=False),
    "bf16": Native("bfloat16", "the processor has bfloat16 instructions", settled=False),
}


def resolve(precision: Precision, device: str) -> NumberFormat:
    """Return the number format of a model on `device`: what params force, or the native one."""
    return native(device).number_format if precision == "auto" else precision


def native(device: str) -> Native:
    """Return the number format in which a device (`cpu`, `cuda`, `mps`) is fast.

    Raises:
        UserError: `$COHOBATE_PRECISION` is set to something else than a number format.
    """
    if forced := os.environ.get(FORCED):
        if forced not in BYTES:
            raise UserError(
                f"{forced!r} is not a number format",
                where=f"environment variable {FORCED}",
                fix=f"unset {FORCED}, or set it to float32 or bfloat16",
            )
        return Native(cast("NumberFormat", forced), f"{FORCED} is set")
    if device.startswith("cuda"):
        return _of_cuda()
    if device.startswith("mps"):
        return _of_mps()
    suggested = by_flags(flags(), platform.system())
    return suggested if suggested.settled else _unless_clearly_slower(suggested, gflops())


def describe(device: str) -> str:
    """Return in one line which device computes in which number format by default, and why."""
    chosen = native(device)
    return f"{device_name(device)}: {chosen.number_format} ({chosen.reason})"


def by_flags(allowed: frozenset[str], system: str) -> Native:
    """Return the number format that a processor's instructions suggest.

    Args:
        allowed: its flags, as torch names them.
        system: what `platform.system()` says.
    """
    if system == "Darwin":
        return Native("float32", "Apple's Accelerate multiplies in float32")
    fitting = (rule for flag, rule in _RULES.items() if flag in allowed)
    return next(fitting, Native("float32", "the processor has no bfloat16 instructions"))


def flags() -> frozenset[str]:
    """Return the processor's flags, of those that decide, that oneDNN may use here."""
    import torch

    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return frozenset()
    capabilities = torch.cpu.get_capabilities()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    barred = next((flags for names, flags in _BARRED.items() if limit in names), frozenset())
    return frozenset(flag for flag in _RULES if capabilities.get(flag) and flag not in barred)


def processor() -> str:
    """Return the name of the processor, as far as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def device_name(device: str) -> str:
    """Return the name of a device's processor or GPU."""
    import torch

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if on_gpu else processor()


def gflops() -> dict[str, float]:
    """Return how many GFLOP/s a core reaches in each format: measured once a machine."""
    path = _figures_file()
    speeds = _read(path)
    if speeds is None:
        speeds = measure()
        with contextlib.suppress(OSError):  # where nothing can be written, each process measures
            _publish(path, speeds)
            speeds = _read(path) or speeds  # another process may have been first
    return speeds


def _of_cuda() -> Native:
    import torch

    capabilities = [torch.cuda.get_device_capability(n) for n in range(torch.cuda.device_count())]
    if not capabilities:  # a process without a GPU decides for workers that have one
        return Native("bfloat16", "as GPUs have it since compute capability 8.0")
    major, minor = min(capabilities)
    reason = f"compute capability {major}.{minor}"
    return Native("bfloat16" if major >= 8 else "float32", reason)


def _of_mps() -> Native:
    import torch

    if torch.backends.mps.is_macos_or_newer(14, 0):
        return Native("bfloat16", "macOS 14 or newer")
    return Native("float32", "macOS before 14")


def _unless_clearly_slower(suggested: Native, speeds: Mapping[str, float]) -> Native:
    """Return what the flags suggest, unless the other format is measured as clearly faster."""
    kept = suggested.number_format
    other: NumberFormat = "float32" if kept == "bfloat16" else "bfloat16"
    ratio = speeds[other] / speeds[kept]
    if ratio < CLEARLY_FASTER:
        return suggested
    return Native(other, f"{suggested.reason}; {other} is {ratio:.1f} times as fast, measured")


def _figures_file() -> Path:
    """Return where the figures of this processor, torch and environment are kept."""
    import torch

    limits = [os.environ.get(name, "") for name in _LIMITS]
    decided_by = [processor(), *sorted(flags()), torch.__version__, *limits]
    key = hashlib.sha256("\n".join(decided_by).encode()).hexdigest()[:16]
    return cache.folder() / "number-formats" / f"{key}.json"


def _read(path: Path) -> dict[str, float] | None:
    """Return the figures of a file; None where there is none, or it is malformed."""
    try:
        figures = json.loads(path.read_bytes())
        speeds = {name: float(figures[name]) for name in BYTES}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return speeds if all(math.isfinite(s) and s > 0 for s in speeds.values()) else None


def _publish(path: Path, speeds: Mapping[str, float]) -> None:
    """Write the figures, whole or not at all; the first of several processes wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _read(path) is None:
        # a file that cannot be read is replaced
        path.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(speeds, indent=2, sort_keys=True) + "\n")
    try:
        # unlike a rename, a link never replaces the file of another process
        path.hardlink_to(partial)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def measure() -> dict[str, float]:
    """Return the GFLOP/s of one core in each format, just now; the best of a few times counts."""
    import torch
    from torch.nn import functional as F

    rows, inputs, outputs = _SHAPE
    rows_NI, weight_OI = torch.ones(rows, inputs), torch.ones(outputs, inputs)
    factors: dict[str, Any] = {
        name: [x.to(getattr(torch, name)) for x in (rows_NI, weight_OI)] for name in BYTES
    }
    best, threads = dict.fromkeys(BYTES, math.inf), torch.get_num_threads()
    # figures of one core, as workers differ in their number of threads
    torch.set_num_threads(1)
    with torch.inference_mode():
        for turn in range(5):  # the first is warm-up
            # in turns: what disturbs the machine slows both formats
            for name, pair in factors.items():
                start = time.perf_counter()
                F.linear(*pair)
                if turn:
                    best[name] = min(best[name], time.perf_counter() - start)
    torch.set_num_threads(threads)
    work = 2 * rows * inputs * outputs / 1e9
    return {name: round(work / max(seconds, 1e-9), 1) for name, seconds in best.items()}
