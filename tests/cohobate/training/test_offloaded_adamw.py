"""AdamW with moments on the host: AdamW to the bit on a CPU, alone and sharded, and resumed."""

import shutil
from typing import Any

import pytest

from cohobate.data.records import TRAIN
from cohobate.models.model_size import ModelSize
from cohobate.training import checkpointing
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import OPTIMISER, Placement, peak_memory
from tests.cohobate.training.test_processes import SFT, history, start
from tests.cohobate.training.test_sharded import SLOW
from tests.cohobate.training.workers import together

__all__ = ["start"]  # a fixture
OFFLOADED = SFT | SLOW | {"optimiser": "adamw_offloaded"}


def published() -> tuple[bytes, Any]:
    return (TRAIN / "it/seed-1/model.safetensors").read_bytes(), history()


@pytest.mark.parametrize("change", [{}, {"sharding": "on"}], ids=["alone", "sharded"])
def test_it_is_adamw_and_goes_on_where_it_was_killed(start: None, change: dict[str, Any]) -> None:
    count = 2 if change else 1
    assert together(OFFLOADED | change | {"optimiser": "adamw"}, count) == [""] * count
    expected = published()
    shutil.rmtree(TRAIN)
    shutil.rmtree(checkpointing.TRAINING)
    assert together(OFFLOADED | change, count) == [""] * count
    assert published() == expected
    shutil.rmtree(TRAIN)
    newest = sorted(checkpointing.TRAINING.rglob("update-*"))[-1]
    assert len(list(newest.glob("moments-*.safetensors"))) == count, "one a worker"
    shutil.rmtree(newest)
    assert together(OFFLOADED | change, count) == [""] * count
    assert published() == expected


def test_a_gpu_holds_no_moments() -> None:
    sizes = {"parameters": 10_000, "embeddings": 2_000, "layers": 2, "width": 32, "neurons": 64}
    size = ModelSize(**sizes, heads=2, vocabulary=260)
    for device, share in (("cuda", 0), ("cpu", 1)):
        by_optimiser = [
            peak_memory(
                size,
                Hyperparameters(updates=1, optimiser=optimiser, precision="float32"),
                16,
                placement=Placement(device),
            )[OPTIMISER]
            for optimiser in ("adamw_offloaded", "adamw")
        ]
        assert by_optimiser[0] == share * by_optimiser[1]
