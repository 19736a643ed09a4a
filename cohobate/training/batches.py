"""Batches of a training run: the examples of each update, and micro-batches as tensors.

The order is shuffled anew for each epoch. Within a window of updates, rows of similar length come
together, so that there is little padding. Curriculum stages come one after the other, each with
updates in proportion to its rows. Where rows are of several tasks, each stage draws them at the
rates of `mixing` (cohobate/training/mixing.py); a task that is drawn more often has more epochs.

All batches are planned before the first update: a resumed run and every worker plan the same ones.
"""

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from cohobate.data.examples import Example, TargetCollator, completion_positions
from cohobate.data.tokenized import pad_right
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.mixing import Mixing, check_tasks, draw_tasks, mixing_rates

WINDOW = 16
"""Number of updates whose rows are sorted by length together."""


def plan_batches(
    examples: Sequence[Example], hyperparameters: Hyperparameters, seed: int
) -> list[list[int]]:
    """Return the positions in `examples` of each update's rows.

    Raises:
        UserError: the rows are of other tasks than `mixing` names.
    """
    mixing = hyperparameters.mixing
    check_tasks(mixing, {example.task for example in examples})
    curriculum_stages = sorted({example.stage for example in examples})
    updates, size = hyperparameters.updates_over(len(examples)), hyperparameters.batch_size
    batches: list[list[int]] = []
    seen = 0
    for stage in curriculum_stages:
        rows = [i for i, example in enumerate(examples) if example.stage == stage]
        seen += len(rows)
        # rounded on the running total, so that the stages add up to `updates`
        count = round(updates * seen / len(examples)) - len(batches)
        rng = random.Random(f"{seed}/{stage}")
        drawn = _draws(examples, rows, mixing, rng)
        batches += _stage_batches(examples, drawn, count, size, rng)
    return batches


class _Draws(NamedTuple):
    """The rows of a curriculum stage in the order in which they are drawn."""

    rows: Iterator[int]
    """Positions of the examples, without end."""
    epoch: int
    """How many are drawn before a row comes again."""


def _draws(
    examples: Sequence[Example], rows: list[int], mixing: Mixing, rng: random.Random
) -> _Draws:
    """Return the rows of a stage as they are drawn."""
    if mixing == "proportional":
        return _Draws(_epochs(rows, rng), len(rows))
    by_task: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_task[examples[row].task].append(row)
    rates = mixing_rates(mixing, {task: len(by_task[task]) for task in sorted(by_task)})
    endless = {task: _epochs(by_task[task], rng) for task in rates}
    epoch = min(int(len(by_task[task]) / rate) for task, rate in rates.items())
    return _Draws((next(endless[task]) for task in draw_tasks(rates)), epoch)


def _stage_batches(
    examples: Sequence[Example],
    drawn: _Draws,
    count: int,
    size: int,
    rng: random.Random,
) -> Iterator[list[int]]:
    # no longer than an epoch: sorting would put a row of two epochs twice into one update
    widest = min(WINDOW, max(1, drawn.epoch // size))
    for start in range(0, count, widest):
        width = min(widest, count - start)
        window = [next(drawn.rows) for _ in range(width * size)]
        window.sort(key=lambda i: len(examples[i].ids))
        batches = [window[n * size : (n + 1) * size] for n in range(width)]
        # short and long updates alternate at random: no trend of the loss with the length
        rng.shuffle(batches)
        yield from batches


def _epochs(rows: list[int], rng: random.Random) -> Iterator[int]:
    order = list(rows)
    while True:
        rng.shuffle(order)
        yield from order


class MicroBatches(Dataset[dict[str, Any]]):
    """The micro-batches of all updates, in order, as the tensors that a `ModelLoss` takes."""

    def __init__(
        self,
        examples: Sequence[Example],
        batches: Sequence[Sequence[int]],
        rows_at_once: int,
        target_source: TargetCollator | None,
    ) -> None:
        self.examples, self.target_source = examples, target_source
        # generated rows of the current update, by the number of their micro-batch
        self._replaced: dict[int, list[Example]] = {}
        starts = [
            (update, start)
            for update, batch in enumerate(batches)
            for start in range(0, len(batch), rows_at_once)
        ]
        self.micro = [list(batches[n][start : start + rows_at_once]) for n, start in starts]
        self.progress = [n / max(1, len(batches) - 1) for n, _ in starts]

    def __len__(self) -> int:
        return len(self.micro)

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return a micro-batch: `ids_BS`, `positions_N` (into B·S), `labels_N`.

        Where rows have pictures also `images`, their names. With a target source also
        `by_student_N`, `progress` (0 to 1 over the run) and `teacher_inputs`, as the source
        collates them.
        """
        if number >= len(self.micro):
            raise IndexError(number)
        rows = self.rows(number)
        # the hidden state at a token predicts the next one: the last token is a label alone
        ids_BS = pad_right([row.ids[:-1].tolist() for row in rows], 0)
        batch: dict[str, Any] = {
            "ids_BS": ids_BS,
            "positions_N": completion_positions(rows, ids_BS.shape[1]),
            "labels_N": torch.from_numpy(np.concatenate([row.labels for row in rows])),
        }
        images = [row.images for row in rows]
        if any(images):  # names alone: pictures are read when the batch goes through the model
            batch["images"] = images
        if self.target_source is not None:
            # one flag a completion token, in the order of labels_N
            by_student = [row.by_student for row in rows for _ in range(row.length)]
            batch["by_student_N"] = torch.tensor(by_student)
            batch |= {
                "progress": self.progress[number],
                "teacher_inputs": self.target_source.collate(rows),
            }
        return batch

    def rows(self, number: int) -> list[Example]:
        """Return the examples of a micro-batch."""
        return self._replaced.get(number) or [self.examples[i] for i in self.micro[number]]

    def replace(self, numbers: Sequence[int], rows: Sequence[Example]) -> None:
        """Replace the rows of one update; `numbers` are its micro-batches."""
        # the rows of earlier updates are dropped here: only one update is in memory
        size = math.ceil(len(rows) / len(numbers))
        parts = (list(rows[n * size : (n + 1) * size]) for n in range(len(numbers)))
        self._replaced = dict(zip(numbers, parts, strict=True))
