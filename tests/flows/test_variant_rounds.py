"""Every variant of a round that the README names runs whole.

Without the marker `slow` are those that are furthest apart; `make recipes-tiny` runs all of them
through the flow.
"""

from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.tiny_rounds import VARIANTS, Round

OFTEN = (
    *("default", "uld", "two teachers, live", "signals of labels", "sampled signals"),
    *("random student", "out of distribution", "two seeds", "gguf", "API in batches"),
    "signals of a teacher behind vllm",
)
ROUNDS = [
    pytest.param(what, id=what.name, marks=() if what.name in OFTEN else pytest.mark.slow)
    for what in VARIANTS
]


@pytest.mark.parametrize("what", ROUNDS)
def test_a_variant_runs_whole(tiny_round_project: Path, what: Round) -> None:
    if what.needs:
        pytest.importorskip(what.needs)
    tiny_rounds.in_process(tiny_round_project, what)
    tiny_rounds.check(tiny_round_project, what)
