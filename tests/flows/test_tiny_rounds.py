"""Every recipe and every variant that the README names runs whole, from a fresh project."""

from pathlib import Path

import pytest

from tests import tiny_rounds
from tests.tiny_rounds import RECIPES, VARIANTS, Models, Round


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose DVC cache all rounds share: what they have in common runs once."""
    folder = tmp_path_factory.mktemp("rounds")
    return tiny_rounds.build(folder / "project", Models(folder / "models"))


@pytest.fixture
def fresh(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as it was committed: nothing that a round before has written."""
    monkeypatch.setenv("COHOBATE_CACHE", str(project.parent / "cache"))
    tiny_rounds.clean(project)
    return project


@pytest.mark.parametrize("what", [*RECIPES, *VARIANTS], ids=lambda what: what.name)
def test_a_round_runs_whole(fresh: Path, what: Round) -> None:
    if what.needs:
        pytest.importorskip(what.needs)
    tiny_rounds.in_process(fresh, what)
    tiny_rounds.check(fresh, what)
