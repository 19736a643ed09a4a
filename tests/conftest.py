"""Shared fixtures: a byte-level tokenizer and Llamas of a few thousand parameters, no hub."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from tests import tiny_models

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A test that is slow on a busy machine is no failure: what is timed is in benchmarks/.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


ROUNDS = sorted(
    path.name
    for path in (Path(__file__).parent / "flows").glob("test_*.py")
    if "pytestmark = pytest.mark.round" in path.read_text()
)
"""Files of whole rounds, which wait for Ray and Prefect while other tests compute."""


class Scheduling(LoadFileScheduling):
    """Files go to workers as a whole, and those of rounds to two workers alone.

    More than two rounds at once would be slow: they start a server and a cluster each.
    """

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        name = Path(file).name
        return f"rounds {ROUNDS.index(name) % 2}" if name in ROUNDS else file


@pytest.hookimpl(optionalhook=True)  # pytest may run without the plug-in
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files of rounds first, so that no worker is left with them at the end."""
    items.sort(key=lambda item: not item.path.name.endswith("_rounds.py"))
    items.sort(key=lambda item: item.path.name not in ROUNDS)


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    return tiny_models.make_tokenizer


@pytest.fixture
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


@pytest.fixture
def make_model(one_thread: None) -> Callable[..., Any]:
    return tiny_models.make_model


@pytest.fixture
def model(make_model: Callable[..., Any], tokenizer: Any) -> Any:
    return make_model(tokenizer)


@pytest.fixture
def checkpoint(model: Any, tokenizer: Any, tmp_path: Path) -> Path:
    """A published checkpoint of the tiny model, outside the project folder."""
    from cohobate.models import checkpoints

    folder = tmp_path / "elsewhere" / "tiny"
    checkpoints.save(model, tokenizer, folder, {"from": "a test"})
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, made the current one; caches stay below it."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COHOBATE_CACHE", str(tmp_path / "cache"))
    return folder
