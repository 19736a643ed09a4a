"""Which rows each update sees, and what the model gets of them."""

import numpy as np
import torch

from cohobate.data.examples import Example, common_prefix, examples_of, row_key
from cohobate.data.records import Row, TrainingRow
from cohobate.data.tokenized import Encoded
from cohobate.training.batches import WINDOW, MicroBatches, plan_batches
from cohobate.training.hyperparameters import Hyperparameters


def example(length: int, prompt: int = 2, stage: int = 0, key: str = "r") -> Example:
    return Example.with_answer(key, np.arange(10, 10 + length, dtype=np.int32), prompt, stage=stage)


def test_every_row_comes_once_in_an_epoch() -> None:
    examples = [example(3 + n % 20) for n in range(70)]
    batches = plan_batches(examples, Hyperparameters(epochs=1, batch_size=7), seed=1)
    assert [len(batch) for batch in batches] == [7] * 10
    assert sorted(i for batch in batches for i in batch) == list(range(70))


def test_the_seed_decides_the_order_and_nothing_else_does() -> None:
    examples = [example(3 + n % 20) for n in range(70)]
    first, again, other = (
        plan_batches(examples, Hyperparameters(updates=9), seed=s) for s in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_rows_of_like_length_come_together_in_shuffled_batches() -> None:
    rng = np.random.default_rng(0)
    examples = [example(int(n)) for n in rng.integers(3, 100, 8 * WINDOW)]
    batches = plan_batches(examples, Hyperparameters(epochs=1, batch_size=8), seed=1)
    longest = [max(len(examples[i].ids) for i in batch) for batch in batches]
    padded = sum(8 * width for width in longest)
    assert sum(len(e.ids) for e in examples) / padded > 0.9
    assert longest != sorted(longest)


def test_stages_follow_each_other_and_share_the_updates_by_their_rows() -> None:
    examples = [example(5, stage=stage) for stage in [2] * 10 + [0] * 30 + [1] * 60]
    batches = plan_batches(examples, Hyperparameters(updates=50, batch_size=4), seed=1)
    stages = [{examples[i].stage for i in batch} for batch in batches]
    assert stages == [{0}] * 15 + [{1}] * 30 + [{2}] * 5


def test_fewer_rows_than_a_batch_are_met_again() -> None:
    batches = plan_batches([example(4)] * 3, Hyperparameters(updates=4, batch_size=8), seed=1)
    assert [len(batch) for batch in batches] == [8] * 4


def test_what_all_prompts_begin_with_ends_before_what_is_looked_at() -> None:
    rows = [example(9, prompt=5), example(7, prompt=6)]
    assert common_prefix(rows).tolist() == [10, 11, 12, 13]
    rows[1].ids[2] = 0
    assert common_prefix(rows).tolist() == [10, 11]
    assert common_prefix([example(4, prompt=1), *rows]).tolist() == []
    assert common_prefix([]).tolist() == []


def test_a_micro_batch_says_where_each_completion_token_is_predicted() -> None:
    rows = [example(5, prompt=3), example(3, prompt=1)]
    batch = MicroBatches(rows, [[0, 1]], 2, None)[0]
    assert batch["ids_BS"].tolist() == [[10, 11, 12, 13], [10, 11, 0, 0]]
    assert batch["positions_N"].tolist() == [2, 3, 4, 5]
    assert batch["labels_N"].tolist() == [13, 14, 11, 12]
    assert batch["labels_N"].dtype == torch.int64


def test_an_update_is_cut_into_micro_batches() -> None:
    batches = MicroBatches([example(4)] * 5, [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], 2, None)
    assert batches.micro == [[0, 1], [2, 3], [4], [4, 3], [2, 1], [0]]


def test_rows_without_answer_or_too_long_are_left_out() -> None:
    rows = [Row(id=str(n), prompt="p") for n in range(3)]
    encoded = [Encoded.of([1, 2], [3]), Encoded.of([1, 2], []), Encoded.of([1, 2, 3], [4])]
    assert [e.key for e in examples_of(rows, encoded, max_tokens=3)] == ["0"]


def test_a_lesson_brings_its_stage_and_says_whose_answer_it_is() -> None:
    lesson = TrainingRow(
        id="a", prompt="p", teacher="main", sample=2, finish="stop", difficulty=1.0, stage=3
    )
    (example,) = examples_of([lesson], [Encoded.of([1], [2])])
    assert (example.key, example.stage) == ("a/main/2", 3)
    assert row_key(Row(id="a", prompt="p")) == "a"
