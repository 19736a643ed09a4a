"""Attention over rows that lie end to end: each row is compared with itself, not with all.

A mask over a sequence of many rows is mostly no: attention under it does the work of the whole
square. Here the rows' queries are stacked, (B, L, H, E), against the beginning that all share and
their own keys, which is what is looked at and little more.

The mask is a tensor of its own kind: `scaled_dot_product_attention` given it goes row by row, and
to all else it is the plain mask that it shows. So models need to know nothing of it.

Shapes: G sequences, T tokens of each that are read, U that are looked at (those of the beginning
whose keys and values are known, and the T), B rows, S tokens of the longest, P of the common
beginning, L = S - P, H heads, E width of a head.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_WHOLE = 192
"""Tokens of a row up to which its scores are made as a whole, quicker than blockwise on a CPU."""


@dataclass(frozen=True)
class Rows:
    """Where rows lie in sequences."""

    key_BS: Tensor
    """Where in G·U a row's token lies among what is looked at; 0 for padding."""
    asking_BL: Tensor
    """Where in G·T its own tokens lie; 0 for padding."""
    source_GT: Tensor
    """Where a token is among those of the beginnings that are read and, behind them, the B·L."""
    shared: int
    """P."""
    known: int
    """U - T."""
    alike: int
    """Heads of queries that share one of keys, side by side."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token sees of the beginning and of its own row, (G, H, T, E)."""
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        key, value = key[:, :, :: self.alike], value[:, :, :: self.alike]
        read, shared = self.shared - self.known, self.shared
        begin = _causal(query[:, :read], key[:, :shared], value[:, :shared], self.known, scale)
        own = _causal(
            _taken(query, self.asking_BL),
            _taken(key, self.key_BS),
            _taken(value, self.key_BS),
            shared,
            scale,
        )
        found = torch.cat([begin.flatten(0, 1), own.flatten(0, 1)])
        return _taken(found[None], self.source_GT).transpose(1, 2)


def _taken(x_GTHE: Tensor, place_BS: Tensor) -> Tensor:
    """Return the tokens at some places, counted through G·T, (B, S, H, E)."""
    sequences, tokens, heads, width = x_GTHE.shape
    flat = x_GTHE.reshape(sequences * tokens, heads * width)
    return flat.index_select(0, place_BS.flatten()).view(*place_BS.shape, heads, width)


def _causal(query: Tensor, key: Tensor, value: Tensor, before: int, scale: float) -> Tensor:
    """Attend where query number n sees the keys up to number `before` + n, (B, L, H, E).

    In float32, which costs as little here as bfloat16 and does not round the scores. Queries that
    share a key are stacked: keys and values are copied once, and products have more rows.
    """
    rows, asked, heads, width = query.shape
    seen, groups, told = *key.shape[1:3], value.shape[-1]
    alike = heads // groups
    mask = torch.ones(asked, seen, dtype=torch.bool, device=query.device).tril(before)
    if seen > _WHOLE:
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        key, value = (x.repeat_interleave(alike, 1) for x in (key, value))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return found.transpose(1, 2)
    none = torch.zeros((), device=query.device).where(mask, -torch.inf)
    none = none.repeat(alike, 1).expand(rows * groups, -1, -1)
    query = query.reshape(rows, asked, groups, alike, width).permute(0, 2, 3, 1, 4)
    query = query.float().reshape(rows * groups, alike * asked, width)
    key = key.transpose(1, 2).float().reshape(rows * groups, seen, width)
    scores = torch.baddbmm(none, query, key.transpose(1, 2), alpha=scale)
    values = value.transpose(1, 2).float().reshape(rows * groups, seen, told)
    found = torch.bmm(scores.softmax(-1), values).view(rows, groups, alike, asked, told)
    return found.permute(0, 3, 1, 2, 4).flatten(2, 3).to(value.dtype)


class RowMask(Tensor):
    """Which token may look at which, (G, 1, T, U), and why: the rows."""

    rows: Rows
    used: bool
    """Whether attention went row by row."""

    @classmethod
    def of(cls, mask: Tensor, rows: Rows) -> "RowMask":
        """Return the mask as one that knows its rows."""
        knowing = mask.as_subclass(cls)
        knowing.rows, knowing.used = rows, False
        return knowing

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Attend row by row where that is what is asked; else be a plain mask."""
        kwargs = kwargs or {}
        mask = kwargs.get("attn_mask")
        with torch._C.DisableTorchFunctionSubclass():
            asked = func is F.scaled_dot_product_attention and isinstance(mask, cls)
            if not asked or not mask._is_all_there_is(*args, **kwargs):
                return func(*args, **kwargs)
            mask.used = True
            query, key, value = args
            with torch.autocast(mask.device.type, enabled=False):
                return mask.rows.attend(query, key, value, kwargs["scale"])

    def _is_all_there_is(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        attn_mask: Tensor,
        dropout_p: float = 0.0,
        scale: float | None = None,
        is_causal: bool = False,
        enable_gqa: bool = False,
    ) -> bool:
        """Say whether attention is over the sequences as they lie, and by this mask alone."""
        alike = query.shape[:2] == key.shape[:2] and key.shape[:3] == value.shape[:3]
        places = (len(query), query.shape[2], key.shape[2])
        here = alike and places == (len(self), self.shape[-2], self.shape[-1])
        return here and scale is not None and not (dropout_p or is_causal or enable_gqa)
