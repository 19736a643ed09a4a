"""A pass of a teacher over rows: batches of like length, and the signals at their learnt tokens."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from cohobate.data.examples import Example, completion_positions
from cohobate.data.tokenized import pad_right
from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.fast.frozen import load_frozen
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from cohobate.models.number_formats import NumberFormat
from cohobate.teachers.signal_store.form import Signals
from cohobate.teachers.signal_store.store import Origin, row_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class CapturedTeacher:
    """A teacher whose weights are loaded when they are first needed."""

    def __init__(self, folder: Path, number_format: NumberFormat) -> None:
        self.folder, self.number_format = folder, number_format
        self._prefix: tuple[tuple[int, ...], PrefixCache] | None = None

    @functools.cached_property
    def _loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        device = checkpoints.accelerator()
        return load_frozen(self.folder, precision=self.number_format, device=device)

    @property
    def model(self) -> "PreTrainedModel":
        """The model."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self._loaded[1]

    @functools.cached_property
    def head(self) -> Head:
        """Its head, over the ids of its tokenizer."""
        return Head.of(self.model, len(self.tokenizer))

    def close(self) -> None:
        """Release what is not in this process: nothing."""

    def check(self, origin: Origin) -> None:
        """Refuse a store whose signals are over another number of ids than this teacher's.

        Raises:
            UserError: they are.
        """
        if len(self.head.weight_VD) != origin.vocabulary:
            raise UserError(
                f"the signals of the answers are over {origin.vocabulary} ids, the teacher has "
                f"{len(self.head.weight_VD)}",
                where=str(self.folder),
                fix="cohobate run --set generate.signals=off",
            )

    def signals_of(
        self,
        origin: Origin,
        chunk_tokens: int,
        prefix_P: torch.Tensor | None,
        batch: Sequence[Example],
    ) -> Signals:
        """Return the signals at the learnt tokens of a batch (`compute_signals`).

        `prefix_P`: tokens that all rows begin with, which are read once.
        """
        cache = None if prefix_P is None else self._prefix_cache(tuple(prefix_P.tolist()))
        return compute_signals(
            self.model, self.head, origin, chunk_tokens, batch, prefix_cache=cache
        )

    @torch.inference_mode()
    def hidden_states(self, batch: Sequence[Example]) -> list[torch.Tensor]:
        """Return the last hidden states at the learnt tokens of each row, (N, D), on the CPU."""
        states_ND = _hidden_states(self.model, batch).cpu()
        return list(torch.split(states_ND, [row.length for row in batch]))

    def _prefix_cache(self, prefix: tuple[int, ...]) -> PrefixCache:
        if self._prefix is None or self._prefix[0] != prefix:
            self._prefix = prefix, PrefixCache(self.model, torch.tensor(prefix))
        return self._prefix[1]


def batches_by_length(examples: Sequence[Example], batch_tokens: int) -> Iterator[list[Example]]:
    """Yield the rows, longest first, in batches of at most `batch_tokens` tokens with padding."""
    # longest first: a batch is padded to its first row
    order = sorted(examples, key=lambda row: (-len(row.ids), row.key))
    start = 0
    while start < len(order):
        size = max(1, batch_tokens // len(order[start].ids))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def compute_signals(
    model: "PreTrainedModel",
    head: Head,
    origin: Origin,
    chunk_tokens: int,
    batch: Sequence[Example],
    *,
    prefix_cache: PrefixCache | None = None,
) -> Signals:
    """Return the teacher's signals at the completion tokens of a batch, row after row.

    Rows are padded on the right: under a causal mask no completion token attends to padding.
    """
    hidden_ND = _hidden_states(model, batch, prefix_cache)
    uniform_NU = torch.from_numpy(uniform_numbers(batch, origin)).to(model.device)
    chunks = (torch.split(x, chunk_tokens) for x in (hidden_ND, uniform_NU))
    parts = [origin.form.measure(head, *chunk) for chunk in zip(*chunks, strict=True)]
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def _hidden_states(
    model: "PreTrainedModel", batch: Sequence[Example], prefix_cache: PrefixCache | None = None
) -> torch.Tensor:
    """Return the last hidden states at the completion tokens of a batch, row after row, (N, D)."""
    ids_BS = pad_right([row.ids[:-1].tolist() for row in batch], 0).to(model.device)
    positions_N = completion_positions(batch, ids_BS.shape[1]).to(model.device)
    return forward(model, ids_BS, positions_N, prefix_cache=prefix_cache).last_hidden_ND


def uniform_numbers(batch: Sequence[Example], origin: Origin) -> np.ndarray:
    """Return the uniform numbers that draw a batch's ids, (N, U); each row has its own."""
    form = origin.form
    return np.concatenate([form.uniform_numbers(row_hash(row.key), row.length) for row in batch])
