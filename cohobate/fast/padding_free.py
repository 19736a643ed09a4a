"""Rows of a batch read end to end: no padding, and what all begin with is read once.

Some rows lie in one sequence, their common beginning before them; a mask lets each token see that
beginning and its own row alone, and its position is the one in its row. So the numbers are those of
rows that are padded, and the gradient of the beginning is the sum of theirs (the thought of the
common beginning for groups of rollouts: Liu et al. 2025, Prefix Grouper, arXiv 2506.05433). Of a
chat template's rows with a short question more than half is such a beginning.

Shapes: B rows, S tokens of the longest, G sequences, T tokens of each, N valid tokens, D width.
"""

import inspect
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from cohobate.fast.last_block import agree, only
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.fast.row_attention import RowMask, Rows
from cohobate.models.layers import blocks_of, body_of, check_positions, has_blocks, heads_of

WORTH = 4096
"""Tokens that must be saved on a GPU, which has padding for little: an estimate, not measured."""
SEQUENCE = 192
"""Tokens that lie in one sequence, if no row is longer, where each is compared with all others."""
LONG_SEQUENCE = 1024
"""The same where rows are compared with themselves: beyond it packed weights gain nothing."""


def last_hidden(
    model: PreTrainedModel, ids_BS: Tensor, at_N: Tensor, beginning: PrefixCache | None = None
) -> Tensor:
    """Return what a causal LM's head reads at some tokens of right-padded rows, (N, D).

    `at_N` counts through B·S. The numbers are those of a pass over all rows, up to rounding; under
    a causal mask no token attends to padding.

    Args:
        model: in any state.
        ids_BS: the rows.
        at_N: what is looked at.
        beginning: what rows are expected to begin with, read before by this very model.
    """
    check_positions(model, ids_BS.shape[1])
    if model.training and _drops(model):  # chance is drawn for each token, read or not
        return _as_it_is(model, ids_BS, at_N)
    if room := _room(model):
        by_rows = room == LONG_SEQUENCE
        known = _known(model, beginning, ids_BS, at_N) if beginning and by_rows else 0
        layout = PackedBatch.of(ids_BS, lengths_of(at_N, ids_BS).tolist(), room, known)
        saved = ids_BS.numel() - layout.ids_GT.numel()
        if saved >= _worth(ids_BS.device, room):
            return layout.read(model, layout.mask_for(model), at_N, beginning if known else None)
    with only(model, at_N, ids_BS.numel()):
        return _as_it_is(model, ids_BS, at_N)


def has_row_attention(model: PreTrainedModel) -> bool:
    """Say whether a model that learns compares each row with itself alone, as it is set now."""
    return not _drops(model) and _room(model) == LONG_SEQUENCE


def _worth(device: torch.device, room: int) -> int:
    """Return how many tokens must be saved: what a mask costs beside its arithmetic."""
    if device.type != "cpu":
        return WORTH
    return 0 if room == LONG_SEQUENCE else 64


def _as_it_is(model: PreTrainedModel, ids_BS: Tensor, at_N: Tensor) -> Tensor:
    hidden_BSD: Tensor = body_of(model)(ids_BS, use_cache=False).last_hidden_state
    return hidden_BSD.flatten(0, 1)[at_N]


def lengths_of(positions_N: Tensor, ids_BS: Tensor) -> Tensor:
    """Return how many tokens of each row matter, (B,), where some of (B, S) are looked at.

    `positions_N` counts through B·S. Nothing behind a row's last such token has a part in it.
    """
    rows, width = ids_BS.shape
    ends_N = positions_N % width + 1
    lengths_B = torch.ones(rows, dtype=torch.long, device=positions_N.device)
    return lengths_B.scatter_reduce(0, positions_N // width, ends_N, "amax")


@dataclass(frozen=True)
class PackedBatch:
    """Where the tokens of rows lie in sequences."""

    ids_GT: Tensor  # noqa: N815
    row_GT: Tensor  # noqa: N815
    """The row of a token; -1 in the common beginning, B where there is nothing."""
    position_GT: Tensor  # noqa: N815
    """In its row."""
    place_BS: Tensor  # noqa: N815
    """Where in G·T a row's token lies; 0 for padding, and for what is known."""
    shared: int
    """Tokens of the common beginning, P."""
    known: int
    """How many of them a model has read before, so that they lie in no sequence."""

    @classmethod
    def of(cls, ids_BS: Tensor, lengths: list[int], sequence: int, known: int = 0) -> "PackedBatch":
        """Lay rows out, in their order, evenly over sequences of about so many tokens."""
        rows, width = ids_BS.shape
        # a row without a token that is looked at is shorter than what all begin with
        shared = max(known, _shared(ids_BS[:, : min(lengths)]))
        own = [max(0, length - shared) for length in lengths]
        room = max(sequence, width, 2 * shared) - shared
        count = max(1, -(-sum(own) // max(room, 1)))
        read = shared - known
        starts, ends = _spread(own, count, read)
        row_GT = torch.full((count, max(ends)), rows)
        position_GT = torch.zeros_like(row_GT)
        row_GT[:, :read], position_GT[:, :read] = -1, torch.arange(known, shared)
        place_BS = torch.zeros(rows, width, dtype=torch.long)
        for row, (number, start) in enumerate(starts):
            stop, first = start + own[row], number * max(ends)
            row_GT[number, start:stop] = row
            position_GT[number, start:stop] = torch.arange(shared, shared + own[row])
            place_BS[row, known:shared] = torch.arange(first, first + read)
            place_BS[row, shared : shared + own[row]] = torch.arange(first + start, first + stop)
        ids_GT = ids_BS.cpu()[row_GT.clamp(0, rows - 1), position_GT]
        ids_GT, row_GT, position_GT, place_BS = (
            x.to(ids_BS.device) for x in (ids_GT, row_GT, position_GT, place_BS)
        )
        return cls(ids_GT, row_GT, position_GT, place_BS, shared, known)

    def mask(self) -> Tensor:
        """Return which token may look at which, (G, 1, T, U): U are those known and the T."""
        row_GT, known = self.row_GT, self.known
        seen_GU = torch.cat([row_GT.new_full((len(row_GT), known), -1), row_GT], 1)
        kin_GTU = (seen_GU[:, None, :] == row_GT[:, :, None]) | (seen_GU[:, None, :] == -1)
        return kin_GTU.tril(known)[:, None]

    def rows(self, alike: int) -> Rows:
        """Return where attention finds what it needs when it goes row by row.

        `alike`: heads of queries that share one of keys.
        """
        (sequences, tokens), known = self.ids_GT.shape, self.known
        count, longest = len(self.place_BS), int(self.position_GT.max()) + 1
        read, own = self.shared - known, longest - self.shared
        place_BS = self.place_BS[:, :longest]
        key_BS = place_BS + (place_BS // tokens + 1) * known
        key_BS[:, :known] = torch.arange(known)  # any sequence's: they are the same
        starts_G1 = torch.arange(sequences)[:, None] * read
        begun_GT = starts_G1 + self.position_GT - known
        behind_GT = sequences * read + self.row_GT * own + self.position_GT - self.shared
        source_GT = torch.where(self.row_GT < 0, begun_GT, behind_GT)
        source_GT = torch.where(self.row_GT < count, source_GT, 0)
        return Rows(key_BS, place_BS[:, self.shared :], source_GT, self.shared, known, alike)

    def mask_for(self, model: PreTrainedModel) -> Tensor:
        """Return the mask as the model's attention takes it."""
        mask = self.mask()
        if model.config._attn_implementation == "eager":  # it adds the mask
            none = torch.zeros((), dtype=model.dtype, device=mask.device)
            return torch.where(mask, none, torch.finfo(model.dtype).min)
        if mask.device.type != "cpu":
            return mask
        alike = model.config.get_text_config().num_attention_heads // heads_of(model)
        return RowMask.of(mask, self.rows(alike))

    def read(
        self,
        model: PreTrainedModel,
        mask: Tensor,
        at_N: Tensor,
        beginning: PrefixCache | None = None,
    ) -> Tensor:
        """Run a model's body over the sequences; return what it makes of some tokens, (N, D).

        `at_N` counts through the B·S of the rows; `beginning` is what is known.
        """
        place_N = self.place_BS.flatten()[at_N]
        before = {"past_key_values": beginning.cache} if beginning else {}
        where = {"attention_mask": mask, "position_ids": self.position_GT}
        with only(model, place_N, self.ids_GT.numel()):
            out = body_of(model)(self.ids_GT, use_cache=False, **where, **before)
        hidden_GTD: Tensor = out.last_hidden_state
        return hidden_GTD.flatten(0, 1).index_select(0, place_N)


def _spread(own: list[int], count: int, shared: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Return each row's sequence and where in it its own tokens begin, and where sequences end."""
    starts, ends, total = [], [shared] * count, max(sum(own), 1)
    for before, length in zip(accumulate(own, initial=0), own, strict=False):
        number = min(before * count // total, count - 1)
        starts.append((number, ends[number]))
        ends[number] += length
    return starts, ends


def _shared(ids_BS: Tensor) -> int:
    """Return how many first tokens all rows have in common."""
    alike_S = (ids_BS == ids_BS[:1]).all(0)
    return int(alike_S.long().cumprod(0).sum())


def _room(model: PreTrainedModel) -> int:
    """Return how many tokens may lie in one sequence, as the model is set; 0: it cannot read so."""
    implementation = model.config._attn_implementation
    if implementation not in {"eager", "sdpa"}:
        return 0
    with _ONE:  # batches run side by side over one model
        tried = _TRIED.setdefault(model, {})
        if implementation not in tried:
            can = has_blocks(model) and _attends_by_mask(model)
            tried[implementation] = _tried(model) if can else 0
        return tried[implementation]


def _known(model: PreTrainedModel, beginning: PrefixCache, ids_BS: Tensor, at_N: Tensor) -> int:
    """Return how many tokens of rows a model that goes row by row need not read again."""
    with _ONE:
        tried = _TRIED[model]
        if "known" not in tried:
            tried["known"] = _tried(model, known=1)
    return beginning.known_of(ids_BS, at_N) if tried["known"] == LONG_SEQUENCE else 0


def _attends_by_mask(model: PreTrainedModel) -> bool:
    """Say whether every layer looks back at all tokens, and positions are what it is told."""
    layers = DynamicCache(config=model.config).layers
    told = "position_ids" in inspect.signature(body_of(model).forward).parameters
    return told and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def _tried(model: PreTrainedModel, known: int = 0) -> int:
    """Try it: some models make a bias of their own out of a mask, or refuse one.

    What the first block leaves is compared: thirty blocks in bfloat16 make much of its rounding.
    """
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    at_N = torch.arange(ids_BS.numel(), device=model.device)
    layout = PackedBatch.of(ids_BS, [4, 4], SEQUENCE, known)
    mask = layout.mask_for(model)
    left: list[Tensor] = []
    keep = lambda block, inputs, out: left.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handle = blocks_of(model)[0].register_forward_hook(keep)
    try:
        with torch.autocast(ids_BS.device.type, enabled=False):
            _as_it_is(model, ids_BS, at_N)
            beginning = PrefixCache(model, ids_BS[0, :known]) if known else None
            layout.read(model, mask, at_N, beginning)
    except (ValueError, RuntimeError, IndexError, TypeError):
        return 0
    finally:
        handle.remove()
    wanted_BSD, *_, found_GTD = left
    found_BSD = found_GTD.flatten(0, 1)[layout.place_BS]
    if not agree(found_BSD[:, known:], wanted_BSD[:, known:]):
        return 0
    return LONG_SEQUENCE if isinstance(mask, RowMask) and mask.used else SEQUENCE


def _drops(model: PreTrainedModel) -> bool:
    rates = model.config.get_text_config().to_dict().items()
    elsewhere = ("summary", "classifier")  # heads of other tasks
    said = [p for name, p in rates if "drop" in name and not name.startswith(elsewhere)]
    built = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(p for p in [*said, *built] if isinstance(p, float))


_TRIED: WeakKeyDictionary[Any, dict[str, int]] = WeakKeyDictionary()
_ONE = Lock()
