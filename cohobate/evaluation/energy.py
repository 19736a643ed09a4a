"""Energy per generated token, where a meter can be read: RAPL of CPUs, NVML of NVIDIA GPUs.

codecarbon reads the meters, offline: no figure leaves the machine. Without a meter codecarbon would
estimate from data sheets: then only the reason is reported, and no figure. The figures vary from
run to run: they go to `reports/timings.json`, which nothing hashes.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

_JOULES = 3.6e6  # of a kilowatt-hour
_TURNS = 2  # of each model
_LEAST_SECONDS = 0.5  # of one turn: NVML is read a few times a second


class Tracker(Protocol):
    """The methods of codecarbon's tracker that are used."""

    def start_task(self, task_name: str) -> None:
        """Start a measurement."""

    def stop_task(self, task_name: str) -> Any:
        """Stop it; return the energy used, in kilowatt-hours."""


def measured(works: Mapping[str, Callable[[], int]], seconds: float) -> dict[str, Any]:
    """Return the joules per token of each model, or why they are not known.

    Args:
        works: for each model, a function that generates tokens and returns how many.
        seconds: time to measure, for all models together.
    """
    try:
        from codecarbon.core import cpu, gpu
    except ImportError:
        return {"why_not": 'codecarbon is not installed (pip install -e ".[energy]")'}
    meters = ["RAPL"] if cpu.is_rapl_available() else []
    meters += ["NVML"] if gpu.is_gpu_details_available() else []
    if not meters:
        return {"why_not": "no meter can be read on this machine: neither RAPL nor NVML"}
    return {"meters": meters, "joules_per_token": joules(works, seconds, _tracker())}


def joules(
    works: Mapping[str, Callable[[], int]], seconds: float, tracker: Tracker
) -> dict[str, float]:
    """Return the joules per token of each model, measured in turns."""
    spent, tokens = dict.fromkeys(works, 0.0), dict.fromkeys(works, 0)
    each = max(_LEAST_SECONDS, seconds / (_TURNS * len(works)))
    # in turns: what disturbs the machine affects all models alike
    for turn in range(_TURNS):
        for name, work in works.items():
            end = time.perf_counter() + each
            tracker.start_task(f"{name} {turn}")
            while time.perf_counter() < end:
                tokens[name] += work()
            used = tracker.stop_task(f"{name} {turn}")
            spent[name] += _JOULES * (used.cpu_energy + used.gpu_energy)
    return {name: float(f"{spent[name] / tokens[name]:.4g}") for name in works}


def _tracker() -> Tracker:
    from codecarbon import OfflineEmissionsTracker

    tracker: Tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # required by codecarbon for the carbon, which is not reported
        measure_power_secs=0.2,
        save_to_file=False,
        save_to_api=False,
        save_to_logger=False,
        allow_multiple_runs=True,
        log_level="critical",
    )
    return tracker
