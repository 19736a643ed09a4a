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

from tasks.models.blocks import blocks_of, has_blocks
from tasks.models.last_block import agree, only
from tasks.models.row_attention import RowMask, Rows

WORTH = 4096
"""Tokens that must be saved on a GPU, which has padding for little: an estimate, not measured."""
SEQUENCE = 192
"""Tokens that lie in one sequence, if no row is longer, where each is compared with all others."""
LONG_SEQUENCE = 1024
"""The same where rows are compared with themselves: beyond it packed weights gain nothing."""


def last_hidden(model: PreTrainedModel, ids_BS: Tensor, at_N: Tensor) -> Tensor:
    """Return what a causal LM's head reads at some tokens of right-padded rows, (N, D).

    `at_N` counts through B·S. The numbers are those of a pass over all rows, up to rounding; under
    a causal mask no token attends to padding.
    """
    if model.training and _drops(model):  # chance is drawn for each token, read or not
        return _as_it_is(model, ids_BS, at_N)
    if room := _room(model):
        layout = Layout.of(ids_BS, lengths_of(at_N, ids_BS).tolist(), room)
        saved = ids_BS.numel() - layout.ids_GT.numel()
        if saved >= _worth(ids_BS.device, room):
            return layout.read(model, layout.mask_for(model), at_N)
    with only(model, at_N, ids_BS.numel()):
        return _as_it_is(model, ids_BS, at_N)


def reads_by_rows(model: PreTrainedModel) -> bool:
    """Say whether a model that learns compares each row with itself alone, as it is set now."""
    return not _drops(model) and _room(model) == LONG_SEQUENCE


def _worth(device: torch.device, room: int) -> int:
    """Return how many tokens must be saved: what a mask costs beside its arithmetic."""
    if device.type != "cpu":
        return WORTH
    return 0 if room == LONG_SEQUENCE else 64


def _as_it_is(model: PreTrainedModel, ids_BS: Tensor, at_N: Tensor) -> Tensor:
    hidden_BSD: Tensor = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
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
class Layout:
    """Where the tokens of rows lie in sequences."""

    ids_GT: Tensor  # noqa: N815
    row_GT: Tensor  # noqa: N815
    """The row of a token; -1 in the common beginning, B where there is nothing."""
    position_GT: Tensor  # noqa: N815
    """In its row."""
    place_BS: Tensor  # noqa: N815
    """Where in G·T a row's token lies; 0 for padding."""
    shared: int
    """Tokens of the common beginning, P."""

    @classmethod
    def of(cls, ids_BS: Tensor, lengths: list[int], sequence: int) -> "Layout":
        """Lay rows out, in their order, evenly over sequences of about so many tokens."""
        rows, width = ids_BS.shape
        shared = _shared(ids_BS[:, : min(lengths)])
        own = [length - shared for length in lengths]
        room = max(sequence, width, 2 * shared) - shared
        count = max(1, -(-sum(own) // max(room, 1)))
        starts, ends = _spread(own, count, shared)
        row_GT = torch.full((count, max(ends)), rows)
        position_GT = torch.zeros_like(row_GT)
        row_GT[:, :shared], position_GT[:, :shared] = -1, torch.arange(shared)
        place_BS = torch.zeros(rows, width, dtype=torch.long)
        for row, (number, start) in enumerate(starts):
            stop, first = start + own[row], number * max(ends)
            row_GT[number, start:stop] = row
            position_GT[number, start:stop] = torch.arange(shared, lengths[row])
            place_BS[row, :shared] = torch.arange(first, first + shared)
            place_BS[row, shared : lengths[row]] = torch.arange(first + start, first + stop)
        ids_GT = ids_BS.cpu()[row_GT.clamp(0, rows - 1), position_GT]
        ids_GT, row_GT, position_GT, place_BS = (
            x.to(ids_BS.device) for x in (ids_GT, row_GT, position_GT, place_BS)
        )
        return cls(ids_GT, row_GT, position_GT, place_BS, shared)

    def mask(self) -> Tensor:
        """Return which token may look at which, (G, 1, T, T)."""
        row_GT = self.row_GT
        kin_GTT = (row_GT[:, None, :] == row_GT[:, :, None]) | (row_GT[:, None, :] == -1)
        return kin_GTT.tril()[:, None]

    def rows(self) -> Rows:
        """Return where attention finds what it needs when it goes row by row."""
        count, longest = len(self.place_BS), int(self.position_GT.max()) + 1
        first, own = self.shared, longest - self.shared
        starts_G = torch.arange(len(self.ids_GT))[:, None] * first
        behind_GT = starts_G.numel() * first + self.row_GT * own + self.position_GT - first
        source_GT = torch.where(self.row_GT < 0, starts_G + self.position_GT, behind_GT)
        source_GT = torch.where(self.row_GT < count, source_GT, 0)
        return Rows(self.place_BS[:, :longest], source_GT, first)

    def mask_for(self, model: PreTrainedModel) -> Tensor:
        """Return the mask as the model's attention takes it."""
        mask = self.mask()
        if model.config._attn_implementation == "eager":  # it adds the mask
            none = torch.zeros((), dtype=model.dtype, device=mask.device)
            return torch.where(mask, none, torch.finfo(model.dtype).min)
        return RowMask.of(mask, self.rows()) if mask.device.type == "cpu" else mask

    def read(self, model: PreTrainedModel, mask: Tensor, at_N: Tensor) -> Tensor:
        """Run a model's body over the sequences; return what it makes of some tokens, (N, D).

        `at_N` counts through the B·S of the rows.
        """
        place_N = self.place_BS.flatten()[at_N]
        with only(model, place_N, self.ids_GT.numel()):
            out = model.get_decoder()(
                self.ids_GT, attention_mask=mask, position_ids=self.position_GT, use_cache=False
            )
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


def _attends_by_mask(model: PreTrainedModel) -> bool:
    """Say whether every layer looks back at all tokens, and positions are what it is told."""
    layers = DynamicCache(config=model.config).layers
    told = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    return told and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def _tried(model: PreTrainedModel) -> int:
    """Try it: some models make a bias of their own out of a mask, or refuse one.

    What the first block leaves is compared: thirty blocks in bfloat16 make much of its rounding.
    """
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    at_N = torch.arange(ids_BS.numel(), device=model.device)
    layout = Layout.of(ids_BS, [4, 4], SEQUENCE)
    mask = layout.mask_for(model)
    left: list[Tensor] = []
    keep = lambda block, inputs, out: left.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handle = blocks_of(model)[0].register_forward_hook(keep)
    try:
        with torch.autocast(ids_BS.device.type, enabled=False):
            _as_it_is(model, ids_BS, at_N)
            layout.read(model, mask, at_N)
    except (ValueError, RuntimeError, IndexError, TypeError):
        return 0
    finally:
        handle.remove()
    wanted_ND, found_ND = (x.flatten(0, 1) for x in left)
    if not agree(found_ND[layout.place_BS.flatten()], wanted_ND):
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
