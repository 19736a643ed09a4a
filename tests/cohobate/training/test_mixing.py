"""Batches draw tasks at the rates of `mixing`, in curriculum stages too."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from cohobate.data.examples import Example
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from cohobate.training.batches import plan_batches
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.mixing import Mixing, draw_tasks, mixing_rates
from tests.tasks.train.test_train import SFT, phase

ROWS = {"large": 80, "small": 20}


def examples(rows: dict[str, int] = ROWS, stage: int = 0) -> list[Example]:
    rng = np.random.default_rng(0)
    return [
        Example.with_answer(
            f"{task}-{n}", np.arange(4 + int(rng.integers(12)), dtype=np.int32), 2,
            task=task, stage=stage,
        )
        for task, count in rows.items()
        for n in range(count)
    ]  # fmt: skip


def drawn(some: list[Example], **options) -> Counter[str]:
    plan = plan_batches(some, Hyperparameters(batch_size=10, **options), seed=1)
    return Counter(some[n].task for batch in plan for n in batch)


def mixing(value: object) -> Mixing:
    parsed: Mixing = validated(Mixing, value, "train.kd.mixing")
    return parsed


@pytest.mark.parametrize(
    ("value", "share"),
    [
        ("proportional", 0.2),
        ("equal", 0.5),
        ({"temperature": 1}, 0.2),
        ({"temperature": 2}, 20**0.5 / (20**0.5 + 80**0.5)),
        ({"weights": {"large": 1, "small": 3}}, 0.75),
    ],
)
def test_the_rates_of_each_mixing(value: object, share: float) -> None:
    rates = mixing_rates(mixing(value), ROWS)
    assert rates["small"] == pytest.approx(share) and sum(rates.values()) == pytest.approx(1)
    counts = drawn(examples(), updates=40, mixing=value)
    assert counts["small"] == pytest.approx(400 * share, abs=8 if value == "proportional" else 1)


def test_proportional_mixing_is_the_order_without_tasks() -> None:
    untold = [Example(**{name: getattr(one, name) for name in Example.__slots__} | {"task": ""})
              for one in examples()]  # fmt: skip
    hyperparameters = Hyperparameters(updates=20, batch_size=10)
    assert plan_batches(examples(), hyperparameters, 3) == plan_batches(untold, hyperparameters, 3)


def test_each_task_goes_through_all_its_rows_before_one_comes_again() -> None:
    some = examples()
    plan = plan_batches(some, Hyperparameters(updates=8, batch_size=10, mixing="equal"), seed=1)
    counts = Counter(n for batch in plan for n in batch)
    small, large = ([counts[n] for n, one in enumerate(some) if one.task == task]
                    for task in ("small", "large"))  # fmt: skip
    assert set(small) == {2} and Counter(large) == {0: 40, 1: 40}
    for batch in plan:
        assert len(set(batch)) == len(batch), "no row twice in an update where there are enough"


def test_each_curriculum_stage_is_mixed_by_itself() -> None:
    some = [*examples(stage=0), *examples({"large": 30}, stage=1), *examples(stage=2)]
    plan = plan_batches(some, Hyperparameters(updates=23, batch_size=10, mixing="equal"), seed=1)
    stages = [some[batch[0]].stage for batch in plan]
    assert stages == [0] * 10 + [1] * 3 + [2] * 10
    for stage, expected in ((0, 50), (1, 0), (2, 50)):
        rows = [some[n].task for batch in plan for n in batch if some[n].stage == stage]
        assert rows.count("small") == expected


def test_drawing_is_never_off_by_more_than_a_row() -> None:
    rates = {"a": 0.62, "b": 0.3, "c": 0.08}
    counts = Counter[str]()
    for number, task in enumerate(islice(draw_tasks(rates), 1000), start=1):
        counts[task] += 1
        assert all(abs(counts[name] - rate * number) <= 1 for name, rate in rates.items())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weights": {"large": 1}}, "no weight for the task 'small'"),
        ({"weights": {"large": 1, "small": 1, "smal": 1}}, "'smal'; did you mean 'small'"),
    ],
)
def test_weights_must_name_the_tasks_of_the_rows(value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn(examples(), updates=2, mixing=value)


def test_rows_without_a_task_cannot_be_mixed() -> None:
    with pytest.raises(UserError, match="name no task"):
        drawn(examples({"": 30}), updates=2, mixing="equal")
    with pytest.raises(ParamsError):
        mixing({"temperature": 0.5})


def test_the_defaults_leave_no_trace_in_what_decides_a_run() -> None:
    plain = phase(**SFT).params()
    assert {"mixing", "task_weights"}.isdisjoint(plain)
    mixed = phase(**SFT | {"mixing": {"temperature": 2}, "task_weights": {"a": 2}}).params()
    assert mixed == plain | {"mixing": {"temperature": 2.0}, "task_weights": {"a": 2.0}}
