"""Bytes that a layer of a causal LM or an encoder keeps for its backward pass, and takes forward.

They are counted, not fitted: tests/cohobate/training/test_memory.py counts what autograd saves.
"""

from dataclasses import dataclass, replace

from cohobate.models.model_size import ModelSize

_ROWS_AS_ONE_MATRIX = 192
"""Longest row whose scores row attention makes as one matrix (cohobate/fast/row_attention.py)."""


@dataclass(frozen=True)
class KeptForBackward:
    """Bytes that a layer keeps of each token for its backward pass, by the widths of its parts.

    What autograd saves in a layer of Llama: the input of each norm, its normed rows, the inputs of
    the linear layers, queries, keys and values as attention takes them, its output, and four rows
    of the MLP.
    """

    width: int
    neurons: int
    queries: int
    keys: int
    scores: int = 0
    """Of each score, where attention keeps the matrix of a row's scores."""
    others: int = 0
    """Whatever the widths are."""

    def bytes(self, size: ModelSize, tokens: int) -> int:
        """Return the bytes of one token in one layer, in rows of `tokens`."""
        rows = self.width * size.width + self.neurons * size.neurons
        heads = self.queries * (size.queries or size.width) + self.keys * size.keys
        return rows + heads + self.scores * size.heads * tokens + self.others


_PADDED = {False: KeptForBackward(24, 16, 8, 8), True: KeptForBackward(26, 8, 4, 4)}
"""Of `sdpa` over padded rows, in float32 and under bfloat16 autocast."""
_ROWS = {False: KeptForBackward(24, 16, 24, 8), True: KeptForBackward(26, 8, 14, 4)}
"""Of row attention, which gathers each row's queries and keys."""
_SHORT_ROWS = {False: KeptForBackward(24, 16, 12, 16, 4), True: KeptForBackward(26, 8, 10, 12, 4)}
"""Of row attention where it makes the scores of a row as one matrix, in float32 either way."""
_EAGER = {False: KeptForBackward(24, 16, 8, 8, 8), True: KeptForBackward(26, 8, 4, 4, 8)}
"""Of eager attention: scores and their softmax."""

_ENCODER = {
    False: KeptForBackward(28, 8, 4, 8, 12, 16),
    True: KeptForBackward(22, 4, 4, 8, 12, 16),
}
"""Of BERT with dropout, as it is trained: of the scores, their softmax and what dropout left."""


def kept_for_backward(
    tokens: int,
    *,
    half: bool,
    on_cpu: bool,
    eager: bool = False,
    rank: int = 0,
    encoder: bool = False,
) -> KeptForBackward:
    """Return what a layer keeps in rows of `tokens`.

    Args:
        tokens: of the longest row.
        half: under bfloat16 autocast.
        on_cpu: with row attention.
        eager: with eager attention.
        rank: of LoRA's updates; 0 where the weights themselves are trained.
        encoder: of a classifier's encoder. On a CPU it keeps scores whatever its attention, as
            that has dropout.
    """
    if encoder:
        return _ENCODER[half] if on_cpu or eager else replace(_ENCODER[half], scores=0)
    if eager:
        kept = _EAGER[half]
    elif on_cpu:
        kept = (_SHORT_ROWS if tokens <= _ROWS_AS_ONE_MATRIX else _ROWS)[half]
    else:
        kept = _PADDED[half]
    if not rank:
        return kept
    # frozen norms keep no normed rows; each of seven maps keeps what A gave; padded rows in
    # bfloat16 keep attention's output a second time
    twice = 2 if half and not on_cpu else 0
    others = 7 * rank * (2 if half else 4)
    return replace(kept, width=kept.width - 8, queries=kept.queries + twice, others=others)


def forward_bytes(size: ModelSize, bytes_per_weight: int, tokens: int, *, on_cpu: bool) -> int:
    """Return the bytes of a token in a forward pass that keeps nothing, in rows of `tokens`."""
    mlp = 2 * size.width + 3 * size.neurons
    if not on_cpu or tokens > _ROWS_AS_ONE_MATRIX:
        return bytes_per_weight * max(mlp, 2 * size.width + 5 * (size.queries or size.width))
    # scores and their softmax, in float32
    return max(bytes_per_weight * mlp, 8 * size.heads * tokens + 16 * size.width)
