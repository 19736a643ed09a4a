"""Shared fixtures: a byte-level tokenizer and Llamas of a few thousand parameters, no hub."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import tiny_models

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# A test that is slow on a busy machine is no failure: what is timed is in benchmarks/.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with whole rounds first, for two of several workers; a file is a worker's alone.

    Rounds wait for Ray and Prefect while other tests compute; more than two at once would be slow.
    """
    rounds = sorted({item.path for item in items if item.get_closest_marker("round")})
    for item in items:
        group = f"rounds {rounds.index(item.path) % 2}" if item.path in rounds else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path not in rounds)


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
