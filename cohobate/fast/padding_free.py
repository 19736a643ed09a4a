"""Padding-free forward passes: rows packed into few sequences, their common prefix once in each.

A mask lets each token see the prefix and its own row alone, and its position id is the one in its
row. So the numbers are those of padded rows, and the gradient of the prefix is the sum of theirs
(as Prefix Grouper shares the prompt of a group of rollouts: Liu et al. 2025, arXiv 2506.05433).
With a chat template and short questions, more than half of each row is such a prefix.
"""

import inspect
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from cohobate.fast.last_block import all_close, mlp_at
from cohobate.fast.prefix_cache import PrefixCache
from cohobate.fast.row_attention import ROW_ATTENTION, RowIndex
from cohobate.models import seeing
from cohobate.models.layers import blocks_of, body_of, has_blocks

Mode = Literal["rows", "mask", "padded"]
"""How a model takes packed rows: by row attention, by a mask over the sequence, or not at all."""
SEQUENCE: dict[Mode, int] = {
    "mask": 192,  # each token is compared with all of its sequence: longer cost more than padding
    "rows": 1024,  # rows are compared with themselves; beyond it packed weights gain nothing
}
"""Tokens of one sequence, where no row is longer."""
_WORTH_ON_GPU = 4096
"""Tokens that packing must save on a GPU, where padding is cheap. An estimate, not measured."""
_WORTH_OF_MASK = 64
"""Tokens that packing must save on a CPU under a mask: what the mask costs beside its products."""
_MODES: WeakKeyDictionary[Any, dict[str, Mode]] = WeakKeyDictionary()
_PREFIXES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_MASKS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_LOCK = Lock()


def packed_forward(
    model: PreTrainedModel,
    ids_BS: Tensor,
    positions_N: Tensor,
    prefix_cache: PrefixCache | None = None,
) -> Tensor | None:
    """Return what the head reads at the selected tokens, (N, D), from packed rows.

    None where packing saves too few tokens, or the model does not take packed rows.
    """
    mode = packing_mode(model)
    if mode == "padded":
        return None
    cached = 0
    if prefix_cache and mode == "rows" and _takes_prefix(model):
        cached = prefix_cache.cached_tokens(ids_BS, positions_N)
    # on the CPU, where packing is planned
    lengths = row_lengths(positions_N, ids_BS).tolist()
    batch = PackedBatch.of(ids_BS, lengths, SEQUENCE[mode], cached)
    if ids_BS.numel() - batch.ids_AW.numel() < _worth(ids_BS.device, mode):
        return None
    return batch.forward(model, mode, positions_N, prefix_cache if cached else None)


def find_packing(model: PreTrainedModel, device: str) -> None:
    """Try how a model takes packed rows, prefix caches included, on the kind of device named."""
    if packing_mode(model, device) == "rows":
        _takes_prefix(model)


def packing_mode(model: PreTrainedModel, device: str | None = None) -> Mode:
    """Return how a model takes packed rows with the attention that it is set to.

    It is tried once on a few tokens. Where row attention works, the model is set to it.

    Args:
        model: on any device.
        device: the kind on which it will run, where it is not there yet.
    """
    if seeing.sees(model):  # its pictures stand before each row
        return "padded"
    implementation = model.config._attn_implementation
    implementation = "sdpa" if implementation == ROW_ATTENTION else implementation
    if implementation not in {"eager", "sdpa"}:
        return "padded"
    with _LOCK:  # batches run in threads over one model
        modes = _MODES.setdefault(model, {})
        if implementation not in modes:
            modes[implementation] = _tried(model, implementation, device or model.device.type)
        if modes[implementation] == "rows":
            _set_row_attention(model)
        return modes[implementation]


def has_dropout(model: PreTrainedModel) -> bool:
    """Say whether a model in training has dropout anywhere."""
    rates = model.config.get_text_config().to_dict().items()
    elsewhere = ("summary", "classifier")  # heads of other tasks
    given = [p for name, p in rates if "drop" in name and not name.startswith(elsewhere)]
    built = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(p for p in [*given, *built] if isinstance(p, float))


def row_lengths(positions_N: Tensor, ids_BS: Tensor) -> Tensor:
    """Return the length of each row up to its last selected token, (B,), at least 1."""
    rows, width = ids_BS.shape
    ends_N = positions_N % width + 1
    # the last selected token of each row decides, by the maximum
    lengths_B = torch.ones(rows, dtype=torch.long, device=positions_N.device)
    return lengths_B.scatter_reduce(0, positions_N // width, ends_N, "amax")


def _worth(device: torch.device, mode: Mode) -> int:
    """Return how many tokens packing must save to be worth it."""
    if device.type != "cpu":
        return _WORTH_ON_GPU
    return 0 if mode == "rows" else _WORTH_OF_MASK


@dataclass(frozen=True)
class PackedBatch:
    """Rows laid end to end in A sequences of W tokens, and where each token went."""

    ids_AW: Tensor  # noqa: N815
    row_AW: Tensor  # noqa: N815
    """The row of a token; −1 in the common prefix, B where there is nothing."""
    position_AW: Tensor  # noqa: N815
    """Position of a token in its row: the position ids of the model."""
    place_BS: Tensor  # noqa: N815
    """Where a row's token lies, counted through A·W; 0 for padding and for cached tokens."""
    prefix: int
    """P, the tokens that all rows begin with."""
    cached: int
    """How many of them have their keys and values in a cache, and lie in no sequence."""

    @classmethod
    def of(
        cls, ids_BS: Tensor, lengths: list[int], sequence: int, cached: int = 0
    ) -> "PackedBatch":
        """Pack rows in their order, evenly, into sequences of about `sequence` tokens."""
        rows, width = ids_BS.shape
        # a row without a selected token counts as one token: a cached prefix can be longer
        prefix = max(cached, _common_prefix(ids_BS[:, : min(lengths)]))
        own = [max(0, length - prefix) for length in lengths]
        # a sequence repeats the prefix: rows get at least as many of its tokens
        room = max(sequence, width, 2 * prefix) - prefix
        # ⌈own tokens / room⌉ sequences
        count = max(1, -(-sum(own) // max(room, 1)))
        read = prefix - cached
        starts, ends = _spread(own, count, read)
        # the prefix first in each sequence, then the rows; what stays `rows` is nothing
        row_AW = torch.full((count, max(ends)), rows)
        position_AW = torch.zeros_like(row_AW)
        row_AW[:, :read], position_AW[:, :read] = -1, torch.arange(cached, prefix)
        place_BS = torch.zeros(rows, width, dtype=torch.long)
        for row, (number, start) in enumerate(starts):
            # `first` is where the sequence starts in A·W
            stop, first = start + own[row], number * max(ends)
            row_AW[number, start:stop] = row
            position_AW[number, start:stop] = torch.arange(prefix, prefix + own[row])
            # the prefix of a row is where its sequence has it, its own tokens behind
            place_BS[row, cached:prefix] = torch.arange(first, first + read)
            place_BS[row, prefix : prefix + own[row]] = torch.arange(first + start, first + stop)
        # clamped: any row has the prefix (−1), and what is in empty places is not read
        ids_AW = ids_BS.cpu()[row_AW.clamp(0, rows - 1), position_AW]
        ids_AW, row_AW, position_AW, place_BS = (
            x.to(ids_BS.device) for x in (ids_AW, row_AW, position_AW, place_BS)
        )
        return cls(ids_AW, row_AW, position_AW, place_BS, prefix, cached)

    def mask(self) -> Tensor:
        """Return which token may attend to which, (A, 1, W, cached + W)."""
        row_AW, cached = self.row_AW, self.cached
        keys_row = torch.cat([row_AW.new_full((len(row_AW), cached), -1), row_AW], 1)
        # a token sees its own row and the prefix (−1), as far as it is behind them
        same_row = (keys_row[:, None, :] == row_AW[:, :, None]) | (keys_row[:, None, :] == -1)
        # causal: token w is key cached + w
        return same_row.tril(cached)[:, None]

    def row_index(self) -> RowIndex:
        """Return where row attention gathers its queries and keys from."""
        (sequences, tokens), cached = self.ids_AW.shape, self.cached
        count, longest = len(self.place_BS), int(self.position_AW.max()) + 1
        read, own = self.prefix - cached, longest - self.prefix
        place_BS = self.place_BS[:, :longest]
        # the keys of a sequence begin with the cached ones: one more `cached` for each sequence
        key_BS = place_BS + (place_BS // tokens + 1) * cached
        key_BS[:, :cached] = torch.arange(cached)  # any sequence's: they are the same
        # outputs of the prefix come first, A·read of them, then B·own of the rows
        starts_A1 = torch.arange(sequences)[:, None] * read
        prefix_AW = starts_A1 + self.position_AW - cached
        own_AW = sequences * read + self.row_AW * own + self.position_AW - self.prefix
        source_AW = torch.where(self.row_AW < 0, prefix_AW, own_AW)
        # empty places read any output
        source_AW = torch.where(self.row_AW < count, source_AW, 0)
        return RowIndex(key_BS, place_BS[:, self.prefix :], source_AW, self.prefix, cached)

    def forward(
        self,
        model: PreTrainedModel,
        mode: Mode,
        positions_N: Tensor,
        prefix_cache: PrefixCache | None = None,
        row_index: RowIndex | None = None,
    ) -> Tensor:
        """Run a model's body over the sequences; return its output at some tokens, (N, D).

        Args:
            model: takes packed rows as `mode` says.
            mode: its `packing_mode`.
            positions_N: the tokens, counted through the B·S of the rows.
            prefix_cache: holds the `cached` tokens.
            row_index: one of this batch, where the caller wants to know whether it was used.
        """
        mask = as_attention_mask(model, self.mask())
        options: dict[str, Any] = {"attention_mask": mask, "position_ids": self.position_AW}
        if mode == "rows":
            options["row_index"] = row_index or self.row_index()
        if prefix_cache:
            options["past_key_values"] = prefix_cache.cache
        # from places in B·S to places in A·W
        place_N = self.place_BS.flatten()[positions_N]
        with mlp_at(model, place_N, self.ids_AW.numel()):
            out = body_of(model)(self.ids_AW, use_cache=False, **options)
        hidden_AWD: Tensor = out.last_hidden_state
        return hidden_AWD.flatten(0, 1).index_select(0, place_N)


def as_attention_mask(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """Return a mask of booleans in the form that a model's attention takes."""
    if model.config._attn_implementation != "eager":
        return mask
    # it adds the mask to the scores
    zero = torch.zeros((), dtype=model.dtype, device=mask.device)
    return torch.where(mask, zero, torch.finfo(model.dtype).min)


def _spread(own: list[int], count: int, prefix: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Return each row's sequence and the start of its own tokens there, and where sequences end."""
    # a row goes where its first token falls when all own tokens are cut into `count` equal parts
    starts, ends, total = [], [prefix] * count, max(sum(own), 1)
    for before, length in zip(accumulate(own, initial=0), own, strict=False):
        number = min(before * count // total, count - 1)
        starts.append((number, ends[number]))
        ends[number] += length
    return starts, ends


def _common_prefix(ids_BS: Tensor) -> int:
    """Return how many first tokens all rows have in common."""
    # ones up to the first difference, zeros behind it
    same_S = (ids_BS == ids_BS[:1]).all(0)
    return int(same_S.long().cumprod(0).sum())


def _set_row_attention(model: PreTrainedModel) -> bool:
    """Set a model to row attention, which is "sdpa" to all other passes; say whether it is now."""
    if model.config._attn_implementation != ROW_ATTENTION:
        model.set_attn_implementation(ROW_ATTENTION)
    return bool(model.config._attn_implementation == ROW_ATTENTION)


def _tried(model: PreTrainedModel, implementation: str, device: str) -> Mode:
    """Find out how a model takes packed rows.

    Every layer must attend to all tokens before it, and take position ids. Some models make a bias
    of their own out of a mask, refuse one, or keep arguments from their attention: each is tried.
    """
    takes = inspect.signature(body_of(model).forward).parameters
    layers = DynamicCache(config=model.config).layers
    plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
    if not (plain and "position_ids" in takes and has_blocks(model)):
        return "padded"
    if implementation == "sdpa" and device == "cpu":
        if _set_row_attention(model) and _packs_right(model, "rows"):
            return "rows"
        # back to what it was
        model.set_attn_implementation(implementation)
    return "mask" if _packs_right(model, "mask") else "padded"


def _takes_prefix(model: PreTrainedModel) -> bool:
    """Say whether row attention works with a prefix cache in this model; tried once."""
    with _LOCK:
        if model not in _PREFIXES:
            _PREFIXES[model] = _packs_right(model, "rows", cached=1)
        return _PREFIXES[model]


def takes_mask(model: PreTrainedModel) -> bool:
    """Say whether a model attends as a mask over the sequence says, with position ids beside it."""
    mode = packing_mode(model)
    if mode != "rows":
        return mode == "mask"
    with _LOCK:  # row attention works: what the model makes of a mask is not known yet
        if model not in _MASKS:
            _MASKS[model] = _packs_right(model, "mask")
        return _MASKS[model]


@torch.no_grad()
def _packs_right(model: PreTrainedModel, mode: Mode, cached: int = 0) -> bool:
    """Say whether two packed rows give what they give padded.

    The first block's output is compared: over thirty blocks rounding in bfloat16 adds up.
    """
    ids_BS = torch.tensor([[1, 2, 3, 4], [1, 2, 4, 3]], device=model.device)
    positions_N = torch.arange(ids_BS.numel(), device=model.device)
    batch = PackedBatch.of(ids_BS, [4, 4], SEQUENCE[mode], cached)
    row_index = batch.row_index() if mode == "rows" else None
    outputs: list[Tensor] = []
    keep = lambda block, inputs, out: outputs.append(out[0] if isinstance(out, tuple) else out)  # noqa: E731
    handle = blocks_of(model)[0].register_forward_hook(keep)
    try:
        with torch.autocast(ids_BS.device.type, enabled=False):
            body_of(model)(ids_BS, use_cache=False)
            prefix_cache = PrefixCache(model, ids_BS[0, :cached]) if cached else None
            batch.forward(model, mode, positions_N, prefix_cache, row_index)
    except (ValueError, RuntimeError, IndexError, TypeError):
        return False
    finally:
        handle.remove()
    # the numbers are right under the mask alone, but row attention was not reached
    if row_index and not row_index.used:
        return False
    # the padded pass is the first, the packed one the last; the cache runs in between
    reference_BSD, *_, hidden_AWD = outputs
    hidden_BSD = hidden_AWD.flatten(0, 1)[batch.place_BS]
    return all_close(hidden_BSD[:, cached:], reference_BSD[:, cached:])
