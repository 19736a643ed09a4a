"""Every recipe runs whole, from a project in which no stage of training has run.

With the marker `slow` are those whose parts other rounds have; `make recipes-tiny` runs all of them
through the flow.
"""

from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.tiny_rounds import RECIPES, Round

SELDOM = (
    *("lora", "pruned", "deepseek-r1-distill", "self-improvement", "superfiltering", "tinyllama"),
    *("hinton-kd", "sequence-kd", "gkd", "distillm", "teacher-assistant", "progressive-layers"),
    *("sft-kd-dpo", "static-embedder", "two-tasks", "false-promise", "openhermes"),
    *("orca", "phi", "vicuna"),
)
ROUNDS = [
    pytest.param(what, id=what.name, marks=pytest.mark.slow if what.name in SELDOM else ())
    for what in RECIPES
]


@pytest.mark.parametrize("what", ROUNDS)
def test_a_recipe_runs_whole(tiny_round_project: Path, what: Round) -> None:
    if what.needs:
        pytest.importorskip(what.needs)
    tiny_rounds.in_process(tiny_round_project, what)
    tiny_rounds.check(tiny_round_project, what)
