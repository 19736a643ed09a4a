"""Attention over rows that lie end to end: each row is compared with itself, not with all.

A mask over a sequence of many rows is mostly no: attention under it does the work of the whole
square. Here the rows' queries are stacked, (B, H, L, E), against the beginning that all share and
their own keys, which is what is looked at and little more.

The mask is a tensor of its own kind: `scaled_dot_product_attention` given it goes row by row, and
to all else it is the plain mask that it shows. So models need to know nothing of it.

Shapes: G sequences, T tokens of each, B rows, S tokens of the longest, P of the common beginning,
L = S - P, H heads, E width of a head.
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

    place_BS: Tensor
    """Where in G·T a row's token lies; 0 for padding."""
    source_GT: Tensor
    """Where a place's token is among the G·P of the beginnings and, behind them, the B·L."""
    shared: int
    """P."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return what each token sees of the beginning and of its own row, (G, H, T, E)."""
        sequences, heads, tokens, width = query.shape
        rows, longest = self.place_BS.shape
        first, own = self.shared, longest - self.shared
        begin = _causal(query[:, :, :first], key[:, :, :first], value[:, :, :first], 0, scale)
        asked, known, told = (
            x.transpose(1, 2).reshape(sequences * tokens, -1).index_select(0, place_BL.flatten())
            for x, place_BL in (
                (query, self.place_BS[:, first:]),
                (key, self.place_BS),
                (value, self.place_BS),
            )
        )
        seen = _causal(
            asked.view(rows, own, heads, width).transpose(1, 2),
            known.view(rows, longest, heads, width).transpose(1, 2),
            told.view(rows, longest, heads, -1).transpose(1, 2),
            first,
            scale,
        )
        parts = [x.transpose(1, 2).reshape(-1, heads * x.shape[-1]) for x in (begin, seen)]
        found = torch.cat(parts).index_select(0, self.source_GT.flatten())
        return found.view(sequences, tokens, heads, -1).transpose(1, 2)


def _causal(query: Tensor, key: Tensor, value: Tensor, before: int, scale: float) -> Tensor:
    """Attend where query number n sees the keys up to number `before` + n.

    In float32, which costs as little here as bfloat16 and does not round the scores.
    """
    asked, seen = query.shape[2], key.shape[2]
    mask = torch.ones(asked, seen, dtype=torch.bool, device=query.device).tril(before)
    if seen > _WHOLE:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    none = torch.zeros((), device=query.device)
    scores = (query.float() * scale) @ key.float().transpose(2, 3) + none.where(mask, -torch.inf)
    return (scores.softmax(-1) @ value.float()).to(value.dtype)


class RowMask(Tensor):
    """Which token may look at which, (G, 1, T, T), and why: the rows."""

    rows: Rows
    used: bool
    """Whether attention went row by row."""

    @classmethod
    def of(cls, mask_G1TT: Tensor, rows: Rows) -> "RowMask":
        """Return the mask as one that knows its rows."""
        known = mask_G1TT.as_subclass(cls)
        known.rows, known.used = rows, False
        return known

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
        alike = query.shape[:3] == key.shape[:3] == value.shape[:3]
        here = alike and len(query) == len(self) and query.shape[2] == self.shape[-1]
        return here and scale is not None and not (dropout_p or is_causal or enable_gqa)
