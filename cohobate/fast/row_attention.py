"""Attention over packed rows, each compared with itself and the common prefix alone.

The mask of a sequence that holds many rows is mostly False, and attention under it does the work of
the whole square. Here the rows' queries are gathered to (B, S - P, H, E), and see the keys of the
prefix and of their own row: what the mask allows, and little more.

It is an attention function of transformers, `row_attention`, registered beside "sdpa" and "eager".
A pass that gives it no `RowIndex` gets what "sdpa" gives, by the same function.
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROW_ATTENTION = "row_attention"
_WHOLE = 192
"""Keys of a row up to which its scores are made as one matrix, quicker than blockwise on a CPU."""
_OTHER_ATTENTION = ("position_bias", "softcap", "s_aux", "sliding_window")
"""Arguments that make a model's attention more than softmax(q kᵀ) v under the mask."""


@dataclass
class RowIndex:
    """Where the tokens of rows lie in packed sequences: A sequences of W tokens each.

    Of the P tokens of the common prefix `cached` have their keys in a cache: they lie in no
    sequence, and before each sequence's keys.
    """

    key_BS: Tensor
    """Where a row's tokens lie among the keys, counted through A·(cached + W); 0 for padding."""
    query_BS: Tensor
    """Where its own tokens, those behind the prefix, lie in A·W, (B, S - P); 0 for padding."""
    source_AW: Tensor
    """Where a token's output lies: among those of the prefix in each sequence, then B·(S - P)."""
    prefix: int
    """P."""
    cached: int
    used: bool = False
    """Whether a model's attention has used it: some never pass it on."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return each token's attention over the prefix and its own row, (A, W, H, E).

        Args:
            query: (A, H, W, E).
            key: (A, H, cached + W, E), as is `value`; a head of keys may serve several of queries.
            value: see `key`.
            scale: factor of the scores.
        """
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        # the tokens of the prefix that lie in the sequences attend there, once in each
        read, prefix = self.prefix - self.cached, self.prefix
        begin = _causal(query[:, :read], key[:, :prefix], value[:, :prefix], self.cached, scale)
        # each row as a row of its own: its keys are the prefix and its own tokens
        own = _causal(
            _gathered(query, self.query_BS),
            _gathered(key, self.key_BS),
            _gathered(value, self.key_BS),
            prefix,
            scale,
        )
        # from prefixes and rows back to the order of the sequences
        tokens = torch.cat([begin.flatten(0, 1), own.flatten(0, 1)])
        return _gathered(tokens[None], self.source_AW)

    def fits(self, query: Tensor, key: Tensor) -> bool:
        """Say whether queries and keys are those of the sequences as they lie."""
        sequences, tokens = self.source_AW.shape
        return (len(query), query.shape[2]) == (sequences, tokens) and (
            (len(key), key.shape[2]) == (sequences, self.cached + tokens)
        )


def row_attention(  # noqa: PLR0917 (the signature of transformers)
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    row_index: RowIndex | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend row by row where a pass gives a `row_index`; else as transformers' "sdpa" does.

    The signature is that of transformers' attention functions: (A, H, W, E) each, to (A, W, H, E).
    """
    special = dropout or any(kwargs.get(name) is not None for name in _OTHER_ATTENTION)
    if row_index is None or special or scaling is None or not row_index.fits(query, key):
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    row_index.used = True
    with torch.autocast(query.device.type, enabled=False):  # its products are in float32
        return row_index.attend(query, key, value, scaling), None


AttentionInterface.register(ROW_ATTENTION, row_attention)
AttentionMaskInterface.register(ROW_ATTENTION, sdpa_mask)


def _gathered(x: Tensor, index_BS: Tensor) -> Tensor:
    """Return the tokens of (A, W, H, E) at some places, counted through A·W, (B, S, H, E)."""
    sequences, tokens, heads, width = x.shape
    # index_select over flat rows: its gradient is an index_add, cheaper than that of x[index]
    flat = x.reshape(sequences * tokens, heads * width)
    return flat.index_select(0, index_BS.flatten()).view(*index_BS.shape, heads, width)


def _causal(query: Tensor, key: Tensor, value: Tensor, before: int, scale: float) -> Tensor:
    """Attend where query number n sees the keys up to number `before` + n; (B, tokens, H, E) each.

    In float32, which costs as little here as bfloat16 and does not round the scores. Queries that
    share a head of keys are stacked: keys and values are copied once, and products have more rows.
    """
    rows, queries, heads, width = query.shape
    keys, key_heads, value_width = *key.shape[1:3], value.shape[-1]
    shared = heads // key_heads
    mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(before)
    if keys > _WHOLE:
        # under autocast rotary embeddings leave queries and keys in float32, and values in bfloat16
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
        return out.transpose(1, 2)
    # −∞ where a key is hidden; repeated for the stacked query heads
    bias = torch.zeros((), device=query.device).where(mask, -torch.inf)
    bias = bias.repeat(shared, 1).expand(rows * key_heads, -1, -1)
    # (rows, tokens, heads, E) to (rows · key heads, heads that share · tokens, E)
    query = query.reshape(rows, queries, key_heads, shared, width).permute(0, 2, 3, 1, 4)
    query = query.float().reshape(rows * key_heads, shared * queries, width)
    key = key.transpose(1, 2).float().reshape(rows * key_heads, keys, width)
    # bias + scale · q kᵀ
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    values = value.transpose(1, 2).float().reshape(rows * key_heads, keys, value_width)
    out = torch.bmm(scores.softmax(-1), values).view(rows, key_heads, shared, queries, value_width)
    # back to (rows, tokens, heads, E)
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3).to(value.dtype)
