"""Every number of the report stands in a file that its section names."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import write_json
from tasks.evaluate.perturbations import Case, Typos
from tasks.evaluate.report import render
from tasks.evaluate.robustness import Robustness
from tasks.evaluate.settings import EvaluateParams
from tests.tasks.evaluate.simulated_round import SimulatedRound
from tests.tasks.evaluate.tracing import untraced

PARAMS = EvaluateParams(
    bootstrap=500,
    robustness=Robustness(rows=20, perturbations=(Typos(type="typos"), Case(type="case"))),
)


@pytest.fixture
def reported(project: Path) -> Path:
    SimulatedRound(others=(("sft", 0.66),)).lay_out(PARAMS)
    render()
    return project


def test_every_number_is_traced_to_a_file(reported: Path) -> None:
    assert untraced(reported) == []


@pytest.mark.parametrize(
    ("file", "section", "least"),
    [
        ("reports/metrics.json", "header", 8),
        ("data/evaluate/arms.json", "fidelity", 10),
        ("data/evaluate/robustness.json", "robustness", 20),
        ("reports/timings.json", "cost", 8),
        ("reports/cost.json", "money", 4),
        ("data/evaluate/router.json", "money", 3),
        ("reports/stages.json", "time", 3),
        ("data/filter/funnel.json", "data", 5),
    ],
)
def test_numbers_that_no_file_says_are_found_out(
    reported: Path, file: str, section: str, least: int
) -> None:
    def changed(document: Any) -> Any:
        if isinstance(document, dict):
            return {key: changed(value) for key, value in document.items()}
        if isinstance(document, list):
            return [changed(value) for value in document]
        number = isinstance(document, int | float) and not isinstance(document, bool)
        return document * 1.37 + 0.0113 if number else document

    write_json(Path(file), changed(json.loads(Path(file).read_text())))
    assert sum(shown.section == section for shown in untraced(reported)) >= least
