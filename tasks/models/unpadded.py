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
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

WORTH = {"cpu": 64}
"""Tokens that must be saved: what the mask costs beside its arithmetic."""
_WORTH_ELSEWHERE = 4096
"""On a GPU, which has padding for little: an estimate, not measured."""
SEQUENCE = 192
"""Tokens that lie in one sequence, if no row is longer: each is compared with all the others."""


def last_hidden(model: PreTrainedModel, ids_BS: Tensor, lengths_B: Tensor) -> Tensor:
    """Return what a causal LM's head reads of right-padded rows, (B, S, D); of padding, anything.

    The numbers are those of a pass over all rows, up to rounding.
    """
    layout = Layout.of(ids_BS, lengths_B.tolist())
    saved = ids_BS.numel() - layout.ids_GT.numel()
    if saved < WORTH.get(ids_BS.device.type, _WORTH_ELSEWHERE) or not _can(model):
        hidden_BSD: Tensor = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        return hidden_BSD
    return layout.read(model)


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

    @classmethod
    def of(cls, ids_BS: Tensor, lengths: list[int]) -> "Layout":
        """Lay rows out, in their order, over as many sequences as they need, evenly."""
        rows, width = ids_BS.shape
        shared = _shared(ids_BS[:, : min(lengths)])
        own = [length - shared for length in lengths]
        room = max(SEQUENCE, width, 2 * shared) - shared
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
        device = ids_BS.device
        ids_GT = ids_BS.cpu()[row_GT.clamp(0, rows - 1), position_GT]
        return cls(*(x.to(device) for x in (ids_GT, row_GT, position_GT, place_BS)))

    def mask(self) -> Tensor:
        """Return which token may look at which, (G, 1, T, T)."""
        row_GT = self.row_GT
        kin_GTT = (row_GT[:, None, :] == row_GT[:, :, None]) | (row_GT[:, None, :] == -1)
        return kin_GTT.tril()[:, None]

    def read(self, model: PreTrainedModel) -> Tensor:
        """Run a model's body over the sequences; return what it makes of the rows, (B, S, D)."""
        mask = self.mask()
        if model.config._attn_implementation == "eager":  # it adds the mask
            none = torch.zeros((), dtype=model.dtype, device=mask.device)
            mask = torch.where(mask, none, torch.finfo(model.dtype).min)
        out = model.get_decoder()(
            self.ids_GT, attention_mask=mask, position_ids=self.position_GT, use_cache=False
        )
        hidden_GTD: Tensor = out.last_hidden_state
        found_ND = hidden_GTD.flatten(0, 1).index_select(0, self.place_BS.flatten())
        return found_ND.view(*self.place_BS.shape, -1)


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


def _can(model: PreTrainedModel) -> bool:
    """Say whether a model reads rows so, and no chance is at play: dropout draws for each row."""
    if model.training and _drops(model):
        return False
    if model.config._attn_implementation not in {"eager", "sdpa"}:
        return False
    if model not in _TRIED:
        _TRIED[model] = _attends_by_mask(model) and _reads_alike(model)
    return _TRIED[model]


def _attends_by_mask(model: PreTrainedModel) -> bool:
    """Say whether every layer looks back at all tokens, and positions are what it is told."""
    layers = DynamicCache(config=model.config).layers
    told = "position_ids" in inspect.signature(model.get_decoder().forward).parameters
    return told and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.no_grad()
def _reads_alike(model: PreTrainedModel) -> bool:
    """Try it: some models make a bias of their own out of a mask, or refuse one."""
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    with torch.autocast(ids_BS.device.type, enabled=False):
        wanted_BSD = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        try:
            found_BSD = Layout.of(ids_BS, [4, 4]).read(model)
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False
    bound = 1e-4 if wanted_BSD.dtype in {torch.float32, torch.float64} else 3e-2
    furthest = (found_BSD - wanted_BSD).abs().max()
    return bool(furthest <= bound * wanted_BSD.abs().max())


def _drops(model: PreTrainedModel) -> bool:
    rates = model.config.get_text_config().to_dict().items()
    elsewhere = ("summary", "classifier")  # heads of other tasks
    said = [p for name, p in rates if "drop" in name and not name.startswith(elsewhere)]
    built = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(p for p in [*said, *built] if isinstance(p, float))


_TRIED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
