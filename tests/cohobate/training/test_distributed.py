"""Workers under a real local Ray: they learn what one does, and a lost one is replaced.

What they do together is tested without Ray in test_workers.py.
"""

import csv
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cohobate.data.records import INIT_STUDENT, TRAIN
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.progress import Advance, Say, reporting_to
from cohobate.training import checkpointing
from tasks.train.stage import run
from tests.cohobate.training.test_processes import (
    CURVE_TOLERANCE,
    KD,
    METHODS,
    difference,
    history,
    start,
)
from tests.cohobate.training.test_sharded import PARITY, distance, weights
from tests.cohobate.training.workers import phase, together

__all__ = ["start"]  # a fixture


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from cohobate.training.distributed import _cluster

    with _cluster(2):
        yield


def train(sink: Callable[..., None] = lambda event: None, **changes: Any) -> list[dict[str, str]]:
    shutil.rmtree(TRAIN, ignore_errors=True)
    with reporting_to(sink):
        run("kd", phase(KD | changes), seeds=[1])
    with (TRAIN / "kd/seed-1/history.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def killer_of(victims: list[int], killed: list[float]) -> threading.Thread:
    """Kill these workers with -9, one after the other, each once there are new checkpoints."""

    def kill() -> None:
        seen: set[str] = set()
        for victim in victims:
            while len(new := {str(p) for p in checkpointing.TRAINING.rglob("update-*")} - seen) < 2:
                time.sleep(0.02)
            seen |= new
            ours = psutil.Process().children(recursive=True)
            mine = sorted(p.pid for p in ours if "RayTrainWorker" in " ".join(p.cmdline()))
            os.kill(mine[victim], signal.SIGKILL)
            killed.append(time.monotonic())

    return threading.Thread(target=kill, daemon=True)


@pytest.mark.faults
def test_killed_workers_are_replaced_and_nothing_changes(start: None) -> None:
    """The first of the file: the clean run forks its workers, before there is any Ray here."""
    many = {"updates": 120, "checkpoint_every": 10}
    assert together(KD | many) == ["", ""]
    clean = (TRAIN / "it/seed-1/model.safetensors").read_bytes()
    shutil.rmtree(checkpointing.TRAINING)
    killed: list[float] = []
    went_on: list[tuple[float, int]] = []

    def sink(event: Any) -> None:
        if isinstance(event, Say) and "goes on after update" in event.text:
            went_on.append((time.monotonic(), int(event.text.rsplit(" ", 1)[1])))

    killer = killer_of([0, 1], killed)
    killer.start()
    train(sink, **many, workers=2)
    assert len(killed) == len(went_on) == 2
    assert all(on - at < 120 for at, (on, _) in zip(killed, went_on, strict=True))
    assert [update % 10 for _, update in went_on] == [0, 0] and went_on[0][1] < went_on[1][1]
    assert (TRAIN / "kd/seed-1/model.safetensors").read_bytes() == clean


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["off", "on"])
def test_two_workers_of_ray_learn_what_one_does(start: None, cluster: None, sharding: str) -> None:
    one = train()
    events: list[Any] = []
    two = train(events.append, workers=2, sharding=sharding)
    assert difference(one, two, "loss") < CURVE_TOLERANCE
    assert any(isinstance(e, Advance) and e.done == KD["updates"] for e in events)
    assert not (checkpointing.TRAINING / "kd").exists()


def killed_once(phases: dict[str, Any]) -> Callable[[], None]:
    """Return work that trains all phases, and kills its second worker once in each of them."""

    def work() -> None:
        from cohobate import processes
        from cohobate.methods.train import _train
        from cohobate.training.fused_trainer import FusedTrainer

        original = FusedTrainer.close_update
        for name, one in phases.items():
            if (TRAIN / name).exists():  # trained before a worker was lost
                continue

            def close_update(self: Any, learning_rate: float, mark: Path = Path(name)) -> Any:
                if processes.rank() and self.state.global_step == 4 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(self, learning_rate)

            FusedTrainer.close_update = close_update  # type: ignore[method-assign]
            _train(TRAIN / name, one, seed=1)

    return work


@pytest.mark.faults
def test_sharded_workers_of_ray_are_killed_in_each_method(start: None, cluster: None) -> None:
    """One group of workers for all methods: what takes long is to start one."""
    from cohobate.training import distributed

    slow = {"learning_rate": 0.001, "workers": 2, "sharding": "on"}
    phases = {name.replace(" ", "-"): phase(fields | slow) for name, fields in METHODS.items()}
    alone, curves = {}, {}
    for name, one in phases.items():
        run(name, one.model_copy(update={"workers": 1}), seeds=[1])
        alone[name], curves[name] = weights(f"{name}/seed-1"), history(f"{name}/seed-1")
    shutil.rmtree(TRAIN)
    distributed.run(killed_once(phases), 2, replacements=len(phases))
    for name in phases:
        assert Path(name).exists(), "a worker was killed"
        assert difference(curves[name], history(f"{name}/seed-1"), "loss") < PARITY, name
        assert distance(alone[name], weights(f"{name}/seed-1")) < PARITY, name


@pytest.mark.slow
def test_what_is_not_finite_stops_all_workers_and_names_its_rows(
    start: None, cluster: None, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    model = make_model(tokenizer, seed=2, layers=2)
    model.model.norm.weight.data[0] = float("nan")
    checkpoints.save(model, tokenizer, INIT_STUDENT, {})
    with pytest.raises(UserError, match="loss is not finite") as caught:
        train(workers=2)
    assert "update 1, rows" in caught.value.where and caught.value.where.count("/main/0") == 8
    assert not (TRAIN / "kd/seed-1").exists()


@pytest.mark.slow
def test_more_workers_than_slots_are_refused(start: None, cluster: None) -> None:
    with pytest.raises(UserError, match="4 workers need as many CPU slots: the cluster has 2"):
        train(workers=4)


@pytest.mark.parametrize(("failures", "comes_up"), [(0, True), (2, True), (3, False)])
def test_ray_is_given_more_than_one_try_on_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, failures: int, comes_up: bool
) -> None:
    import ray

    from cohobate.training import distributed

    tries: list[int] = []

    def init(**_: Any) -> None:
        tries.append(1)
        if len(tries) <= failures:
            raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if comes_up:
        distributed._start(2, "here")
    else:
        with pytest.raises(UserError, match="Ray did not start") as caught:
            distributed._start(2, "here")
        assert "timed out" in caught.value.where
    assert len(tries) == min(failures + 1, 3)
