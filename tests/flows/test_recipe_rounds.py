"""Every recipe runs whole, from a project in which no stage of training has run."""

from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.tiny_rounds import RECIPES, Round


@pytest.mark.parametrize("what", RECIPES, ids=lambda what: what.name)
def test_a_recipe_runs_whole(tiny_round_project: Path, what: Round) -> None:
    if what.needs:
        pytest.importorskip(what.needs)
    tiny_rounds.in_process(tiny_round_project, what)
    tiny_rounds.check(tiny_round_project, what)
