"""A Prefect server for the tests that run rounds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import prefect_server as server


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the rounds of a module. It ends with them: idle it takes a tenth of a core."""
    with server.prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture(scope="module")
def shared_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose DVC cache the rounds of a module share: what is common runs once."""
    from tests import tiny_rounds

    folder = tmp_path_factory.mktemp("rounds")
    return tiny_rounds.build(folder / "project", tiny_rounds.Models(folder / "models"))


@pytest.fixture
def tiny_round_project(shared_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny project as it was committed, without what a round before made from shape on."""
    from tests import tiny_rounds

    monkeypatch.setenv("COHOBATE_CACHE", str(shared_project.parent / "cache"))
    tiny_rounds.clean(shared_project)
    return shared_project
