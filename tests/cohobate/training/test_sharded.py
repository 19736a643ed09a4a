"""Two workers that share weights, gradients and optimiser learn what one does, by every method."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from cohobate import processes, sealed_folder
from cohobate.data.records import ADAPT, INIT_STUDENT, TRAIN
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from cohobate.training import checkpointing
from cohobate.training.fused_trainer import FusedTrainer
from tasks.train.stage import run
from tests.cohobate.training.test_processes import (
    KD,
    LIVE,
    METHODS,
    SFT,
    difference,
    history,
    start,
)
from tests.cohobate.training.workers import phase, together

__all__ = ["start"]  # a fixture
SHARDED = {"sharding": "on"}
SLOW = {"learning_rate": 0.001}  # Adam makes much of the rounding of small gradients
PARITY = 1e-5


def require_shares() -> None:
    """Refuse, in a worker, a training whose weights are not sharded."""
    from torch.distributed.tensor import DTensor

    original = FusedTrainer.train_remaining

    def train_remaining(self: Any) -> None:
        original(self)
        if processes.world_size() == 1:
            return
        models = [self.loss_fn, *self.loss_fn.live_models]
        weights = [weight for model in models for weight in model.parameters()]
        assert weights and all(isinstance(weight, DTensor) for weight in weights)
        assert not hasattr(self.model_wrapped, "module"), "nor wrapped by DDP"

    FusedTrainer.train_remaining = train_remaining  # type: ignore[method-assign]


def weights(name: str = "it/seed-1") -> dict[str, Any]:
    return load_file(TRAIN / name / "model.safetensors")


def distance(one: dict[str, Any], two: dict[str, Any]) -> float:
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def compare(fields: dict[str, Any], workers: int = 2) -> tuple[float, float]:
    """Return how far losses and weights of sharded workers are from those of one process."""
    run("it", phase(fields), seeds=[1])
    one, alone = history(), weights()
    shutil.rmtree(TRAIN)
    assert together(fields | SHARDED, workers, patch=require_shares) == [""] * workers
    sealed_folder.verify(TRAIN / "it/seed-1")
    return difference(one, history(), "loss"), distance(alone, weights())


@pytest.mark.parametrize("method", METHODS)
def test_two_workers_share_the_weights_and_learn_what_one_does(start: None, method: str) -> None:
    assert max(compare(METHODS[method] | SLOW)) < PARITY


@pytest.mark.slow
def test_four_workers_share_student_and_teacher(start: None) -> None:
    assert max(compare(LIVE | SLOW, workers=4)) < PARITY


@pytest.mark.slow
def test_a_teacher_that_no_row_of_a_worker_goes_to_is_gathered_all_the_same(
    start: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    checkpoints.save(make_model(tokenizer, seed=7, layers=3), tokenizer, ADAPT / "other", {})
    routed = {
        "targets": str(ADAPT),
        "teachers": {"main": 1, "other": 1},
        "combine": {"type": "route", "groups": {"*": "other"}},
        "micro_batch_size": 1,
    }
    assert max(compare(LIVE | SLOW | routed)) < PARITY


LORA = {"type": "lora", "rank": 2}


@pytest.mark.parametrize(
    ("change", "within"),
    [
        ({"adapter": LORA}, PARITY),
        ({"activation_checkpointing": True}, PARITY),
        # hidden states in bfloat16
        ({"adapter": LORA | {"base_precision": "bfloat16"}}, 0.02),
    ],
    ids=["low rank", "activations again", "low rank over bfloat16"],
)
def test_what_saves_memory_goes_with_sharded_weights(
    start: None, change: dict[str, Any], within: float
) -> None:
    assert max(compare(KD | SLOW | change)) < within


@pytest.mark.slow
def test_features_of_sharded_models_are_compared(start: None) -> None:
    terms = [*LIVE["terms"], {"type": "hidden_mse", "layers": "last"}]
    assert max(compare(LIVE | SLOW | {"terms": terms})) < PARITY


def test_in_bfloat16_weights_are_gathered_in_it_and_kept_in_float32(start: None) -> None:
    fields = KD | SLOW | {"precision": "bfloat16"}
    assert together(fields) == ["", ""]
    whole, copies = history(), weights()
    shutil.rmtree(TRAIN)
    assert together(fields | SHARDED) == ["", ""]
    # norms are rounded to bfloat16 too, which autocast leaves in float32
    assert difference(whole, history(), "loss") < 0.01
    assert distance(copies, weights()) < 0.01


@pytest.mark.parametrize("fields", [KD, METHODS["on_policy"]], ids=["kd", "on_policy"])
def test_sharded_workers_go_on_where_they_were(
    start: None, fields: dict[str, Any], make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(tokenizer, seed=2, layers=2, attention_dropout=0.2)
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    assert together(fields | SHARDED) == ["", ""]
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    curve = history()
    shutil.rmtree(TRAIN)
    newest = sorted(checkpointing.TRAINING.rglob("update-*"))
    assert [folder.name for folder in newest] == ["update-000006", "update-000008"]
    assert len(list(newest[0].glob("shard-*.safetensors"))) == 2, "one a worker"
    # the newest is damaged in the share of the second worker
    share = sorted(newest[-1].glob("shard-*.safetensors"))[1]
    share.write_bytes(share.read_bytes()[:-1])
    assert together(fields | SHARDED) == ["", ""]
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean
    assert history() == curve


@pytest.mark.parametrize(
    "method",
    [m if m == "live teacher" else pytest.param(m, marks=pytest.mark.faults) for m in METHODS],
)
def test_a_worker_that_is_killed_changes_nothing(start: None, method: str) -> None:
    fields = METHODS[method] | SHARDED
    assert together(fields) == ["", ""]
    clean, curve = (TRAIN / "it/seed-1/model.safetensors").read_bytes(), history()
    shutil.rmtree(TRAIN)
    shutil.rmtree(checkpointing.TRAINING)
    original = FusedTrainer.close_update

    def close_update(self: Any, learning_rate: float) -> Any:
        if processes.rank() and self.state.global_step == 4 and not Path("once").exists():
            Path("once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, learning_rate)

    def patch() -> None:
        FusedTrainer.close_update = close_update  # type: ignore[method-assign]

    first, second = together(fields, patch=patch)
    assert first and second == "killed" and not TRAIN.exists()
    assert [path.name for path in checkpointing.TRAINING.rglob("update-*")] == ["update-000003"]
    assert together(fields) == ["", ""]
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean
    assert history() == curve


def test_what_is_not_finite_stops_workers_that_share(
    start: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(tokenizer, seed=2, layers=2)
    model.model.norm.weight.data[0] = float("nan")
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    for message in together(SFT | SHARDED):
        assert message.startswith("UserError: the loss is not finite")
        assert "update 1, rows" in message and message.count("/main/0") == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": "adafactor"}, "adafactor needs whole gradients"),
        ({"quantisation": {"type": "int8"}}, "sharding must be off"),
    ],
)
def test_what_needs_whole_weights_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, SFT | SHARDED | change, "train.it")


def test_one_worker_shares_nothing(start: None) -> None:
    run("it", phase(SFT), seeds=[1])
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    run("it", phase(SFT | SHARDED), seeds=[1])
    assert (TRAIN / "it/seed-1/model.safetensors").read_bytes() == clean
