"""AdamW with moments in 8 bits: it learns as AdamW does, resumes, and is shared among workers."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from cohobate.data.records import INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.training import checkpointing, packages
from cohobate.training.fused_trainer import FusedTrainer
from cohobate.training.packages import check_packages
from tests.cohobate.training.test_processes import SFT, difference, history, start
from tests.cohobate.training.test_sharded import SLOW, distance, weights
from tests.cohobate.training.workers import phase, together

__all__ = ["start"]  # a fixture
EIGHT = SFT | SLOW | {"optimiser": "adamw_8bit"}
SHARDED = {"sharding": "on"}


@pytest.fixture
def wide(start: None, make_model: Callable[..., Any], tokenizer: Any) -> None:
    """A student with weights of 4,096 numbers and more: smaller ones keep float32 moments."""
    pytest.importorskip("torchao")
    size = {"hidden_size": 128, "intermediate_size": 256}
    model = make_model(tokenizer, seed=2, layers=1, **size)
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})


def bytes_a_weight(trainer: Any) -> float:
    """Return the bytes of the moments that this worker holds of a trained weight."""
    size = count = 0
    for weight, moments in trainer.optimizer.state.items():
        count += getattr(weight, "_local_tensor", weight).numel()
        for name in ("exp_avg", "exp_avg_sq"):
            local = getattr(moments[name], "_local_tensor", moments[name])
            parts = (local.codes, local.scale) if hasattr(local, "codes") else (local,)
            size += sum(part.nbytes for part in parts)
    return size / count


@pytest.mark.parametrize("change", [{}, SHARDED], ids=["alone", "sharded"])
def test_a_killed_run_goes_on_with_the_same_moments(wide: None, change: dict[str, Any]) -> None:
    count = 2 if change else 1
    original = FusedTrainer.close_update

    def close_update(self: Any, learning_rate: float) -> Any:
        if self.state.global_step == 7:
            assert bytes_a_weight(self) < 2.1
        return original(self, learning_rate)

    def patch() -> None:
        FusedTrainer.close_update = close_update  # type: ignore[method-assign]

    assert together(EIGHT | change, count, patch=patch) == [""] * count
    clean, curve = (TRAIN / "it/seed-1/model.safetensors").read_bytes(), history()
    shutil.rmtree(TRAIN)
    newest = sorted(checkpointing.TRAINING.rglob("update-*"))[-1]
    assert len(list(newest.glob("moments-*.safetensors"))) == count, "one a worker"
    shutil.rmtree(newest)
    assert together(EIGHT | change, count) == [""] * count
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean
    assert history() == curve


def test_it_learns_what_adamw_does(wide: None) -> None:
    curves, published = [], []
    for fields in (EIGHT, EIGHT | {"optimiser": "adamw"}, EIGHT | SHARDED):
        count = 2 if "sharding" in fields else 1
        assert together(fields, count) == [""] * count
        curves.append(history())
        published.append(weights())
        shutil.rmtree(TRAIN)
    assert difference(curves[0], curves[1], "loss") < 0.02
    # blocks of moments lie in the shares as they lie in the whole
    assert difference(curves[0], curves[2], "loss") < 1e-4
    assert distance(published[0], published[2]) < 1e-3


def test_without_torchao_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda package: False)
    with pytest.raises(UserError, match="adamw_8bit needs the package torchao") as caught:
        check_packages({"train.it": phase(EIGHT)})
    assert caught.value.where == "params.yaml, train.it.optimiser"
    assert "quantised" in caught.value.fix
