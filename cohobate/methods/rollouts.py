"""The student's own answers as training text, written while it learns, and kept for a while.

Which updates learn from them is decided by one coin r an update, φ being the share of on-policy
updates and t/T how far training is (DistiLLM, Ko et al. 2024, section 3.2):

    r < φ (1 − t/T), or r < φ while the buffer is not full    the student writes anew
    r < φ                                                     its answers of earlier are taken again
    otherwise                                                 the rows as they were given

Without a buffer, r < φ always writes anew (GKD, Agarwal et al. 2023, algorithm 1).
"""

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cohobate.data.examples import Example
from cohobate.generation.requests import Completion, Request
from cohobate.losses.divergences import Hard
from cohobate.methods.rollout_generators import precision_of, rollout_generator
from cohobate.methods.rollout_settings import OnPolicySchedule, Sampling
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class StudentRollouts:
    """Decides what an update learns from, and has the student write it (`trainer.Rollouts`)."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sampling: Sampling,
        schedule: OnPolicySchedule,
        *,
        seed: int,
        updates: int,
        beside_given: bool = False,
        autocast: bool = False,
        held_out: Sequence[Example] = (),
        vocabulary: int | None = None,
    ) -> None:
        self.model = model
        self.writer = rollout_generator(model, tokenizer, sampling, autocast=autocast)
        self.sampling, self.schedule = sampling, schedule
        self.seed, self.updates, self.beside_given = seed, updates, beside_given
        self.autocast, self.held_out, self.vocabulary = autocast, list(held_out), vocabulary
        self.buffer: deque[Example] = deque(maxlen=sampling.replay)
        self.share, self.losses = 0.0, list[float]()
        self.counts: Counter[str] = Counter()

    def rows(self, update: int, planned: list[Example]) -> list[Example] | None:
        """Return the rows of the update (counted from 0); None for those that were planned.

        `beside_given`: the first half of the prompts comes twice, as given and as the student
        answers them, so that the update has no more rows than any other.
        """
        self._look(update)
        rng = random.Random(f"{self.seed}/on-policy/{update}")
        coin = rng.random()
        if coin >= self.share:
            self.counts["updates on given text"] += 1
            return None
        given = planned[::2] if self.beside_given else []
        full = self.sampling.replay > 0 and len(self.buffer) == self.sampling.replay
        if full and coin >= self.share * (1 - update / self.updates):
            self.counts["updates on replayed text"] += 1
            own = rng.sample(list(self.buffer), min(len(given or planned), len(self.buffer)))
        else:
            self.counts["updates on new text"] += 1
            own = self.write(given or planned, f"{self.seed}/{update}")
            self.buffer.extend(own)
        return sorted([*given, *own], key=lambda row: len(row.ids))

    def state(self) -> dict[str, Any]:
        """Return what was kept, seen and counted so far; every draw is by the update's number."""
        kept = [asdict(row) | {"ids": row.ids.tolist()} for row in self.buffer]
        seen = {"share": self.share, "losses": self.losses, "counts": dict(self.counts)}
        return seen | {"buffer": kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.share, self.losses = state["share"], list(state["losses"])
        self.counts.clear()
        self.counts.update(state["counts"])
        self.buffer.clear()
        self.buffer.extend(
            Example(**row | {"ids": np.array(row["ids"], dtype=np.int32)})
            for row in state["buffer"]
        )

    def write(self, rows: Sequence[Example], draw: str) -> list[Example]:
        """Return the student's answers to the prompts of `rows`; the same for the same `draw`."""
        requests = [
            Request(row.ids[: row.prompt_length].tolist(), f"{draw}/{row.key}") for row in rows
        ]
        training = self.model.training
        self.model.eval()
        answers = self.writer.answers(requests)
        self.model.train(training)
        return [self._example(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _example(self, row: Example, answer: Completion) -> Example:
        ids = np.concatenate([row.ids[: row.prompt_length], np.array(answer.ids, dtype=np.int32)])
        self.counts["answers"] += 1
        self.counts["tokens of answers"] += len(answer.ids)
        masked = False
        if answer.finish == "length":
            self.counts["unfinished answers"] += 1
            masked = self.sampling.unfinished == "mask"
        start = len(ids) if masked else row.prompt_length
        return replace(row, ids=ids, prompt_length=start, by_student=True)

    def _look(self, update: int) -> None:
        if not self.schedule.looks(update):
            return
        if self.held_out:
            self.losses.append(self._held_out_loss())
        self.share = self.schedule.after(self.share, self.losses)

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        rows, size = self.held_out, self.sampling.batching.rows
        parts = [range(len(rows))[n : n + size] for n in range(0, len(rows), size)]
        data = MicroBatches(rows, parts, size, None)
        tokens = sum(row.length for row in rows)
        loss_fn = CausalLMLoss(self.model, [Hard()], vocabulary=self.vocabulary)
        total = 0.0
        training = self.model.training
        self.model.eval()
        with precision_of(self.model, self.autocast):
            for number in range(len(data)):
                batch = {k: tensor.to(self.model.device) for k, tensor in data[number].items()}
                total += float(loss_fn(**batch, divisor=tokens)[0])
        self.model.train(training)
        return total
