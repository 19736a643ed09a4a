"""Every variant of a round that the README names runs whole."""

from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.tiny_rounds import VARIANTS, Round


@pytest.mark.parametrize("what", VARIANTS, ids=lambda what: what.name)
def test_a_variant_runs_whole(tiny_round_project: Path, what: Round) -> None:
    if what.needs:
        pytest.importorskip(what.needs)
    tiny_rounds.in_process(tiny_round_project, what)
    tiny_rounds.check(tiny_round_project, what)
