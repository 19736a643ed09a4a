"""Energy is read or said not to be: never guessed, never sent anywhere."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cohobate.data.records import REPORTS, write_json
from cohobate.evaluation import energy
from tasks.evaluate.report import render
from tasks.evaluate.settings import EvaluateParams
from tests.tasks.evaluate.simulated_round import TIMINGS, SimulatedRound


class Meter:
    """Counts a millionth of a kilowatt-hour for each batch of the teacher, a tenth for others."""

    def __init__(self) -> None:
        self.batches: dict[str, int] = {}
        self.started: list[str] = []

    def start_task(self, task_name: str) -> None:
        self.started.append(task_name)
        self.batches[task_name] = 0

    def stop_task(self, task_name: str) -> Any:
        share = 1.0 if task_name.startswith("teacher") else 0.1
        used = 1e-6 * share * self.batches[task_name]
        return SimpleNamespace(cpu_energy=used * 0.75, gpu_energy=used * 0.25, ram_energy=9.9)


def test_joules_a_token_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    meter, clock = Meter(), iter(range(10**6))
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: next(clock) / 10))

    def work() -> int:
        meter.batches[meter.started[-1]] += 1
        return 64

    figures = energy.joules({"teacher": work, "student": work}, 2.0, meter)
    assert figures == pytest.approx({"teacher": 3.6 / 64, "student": 0.36 / 64}, rel=1e-3)
    assert meter.started == ["teacher 0", "student 0", "teacher 1", "student 1"]


def test_without_a_meter_nothing_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    codecarbon = pytest.importorskip("codecarbon.core.cpu")
    from codecarbon.core import gpu

    monkeypatch.setattr(codecarbon, "is_rapl_available", lambda: False)
    monkeypatch.setattr(gpu, "is_gpu_details_available", lambda: False)
    figures = energy.measured({"teacher": lambda: 1}, 0.0)
    assert figures == {"why_not": "no meter can be read here: neither RAPL nor NVML"}


def test_without_the_library_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "codecarbon.core", None)
    figures = energy.measured({"teacher": lambda: 1}, 0.0)
    assert "codecarbon is not installed" in figures["why_not"]


def test_the_report_shows_it_or_says_why_not(project: Path) -> None:
    params = EvaluateParams(bootstrap=100)
    SimulatedRound(seeds=(1,), rows=40).lay_out(params)
    timings: dict[str, Any] = json.loads(json.dumps(TIMINGS))
    timings["energy"] = {"why_not": "no meter can be read here: neither RAPL nor NVML"}
    write_json(REPORTS / "timings.json", timings)
    assert "Energy: no meter can be read here" in render().read_text()
    each = {"teacher": 0.4212, "student": 0.0381}
    timings["energy"] = {"meters": ["RAPL"], "joules_per_token": each}
    write_json(REPORTS / "timings.json", timings)
    page = render().read_text()
    assert "Energy of a token" in page and "421 mJ → 38.1 mJ" in page
    assert "no meter can be read" not in page
