"""A causal language model made ready to learn: which weights move, and how it gives its loss.

Shapes: B batch, S sequence, N valid tokens, D width, K stored ids, T terms or temperatures.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks.divergences import Term
from tasks.errors import UserError
from tasks.fused_head import LiveTeacher, Targets, TopK, fused_head_loss
from tasks.heads import Head
from tasks.hyperparameters import Freeze, Hyperparameters
from tasks.signals import SignalStore

SHORT_ROW = 256
"""Tokens up to which eager attention trains faster than SDPA on a CPU."""


class Learner(nn.Module):
    """A causal LM that returns its loss; the whole of it is what a Trainer or DDP wraps."""

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[Term],
        chunk_tokens: int = 512,
        signals: SignalStore | None = None,
        vocabulary: int | None = None,
        *,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.model, self.terms, self.chunk_tokens = model, terms, chunk_tokens
        self.temperatures = signals.origin.temperatures if signals else ()
        self.vocabulary = vocabulary
        self._head: Head | None = None
        self._teacher = [teacher] if teacher else []  # in a list: no part of what is trained

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        targets_N: Tensor,
        divisor: float,
        stored_ids_NK: Tensor | None = None,
        stored_logp_NK: Tensor | None = None,
        stored_leftover_NT: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each valid token and term, (N, T).

        Right padding under a causal mask: what is valid never attends to padding.
        """
        hidden_BSD = self.model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        hidden_ND = hidden_BSD.flatten(0, 1)[positions_N]
        if self._head is None:  # not before: moving a model to its device makes new parameters
            self._head = Head.of(self.model, self.vocabulary)
        teacher: TopK | LiveTeacher | None = None
        if stored_ids_NK is not None and stored_logp_NK is not None:
            assert stored_leftover_NT is not None
            teacher = TopK(stored_ids_NK, stored_logp_NK, stored_leftover_NT, self.temperatures)
        elif self._teacher:
            teacher = self._ask(self._teacher[0], ids_BS, positions_N)
        return fused_head_loss(
            hidden_ND,
            self._head,
            self.terms,
            Targets(targets_N, teacher),
            divisor=divisor,
            chunk_tokens=self.chunk_tokens,
        )

    @torch.no_grad()
    def _ask(self, teacher: PreTrainedModel, ids_BS: Tensor, positions_N: Tensor) -> LiveTeacher:
        out = teacher.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        return LiveTeacher(out.flatten(0, 1)[positions_N], Head.of(teacher, self.vocabulary))


def freeze(model: PreTrainedModel, frozen: Freeze) -> None:
    """Set which weights of a causal LM get no gradient.

    Raises:
        UserError: more blocks are to be frozen than there are.
    """
    model.requires_grad_(True)
    blocks = blocks_of(model)
    if frozen.layers > len(blocks):
        raise UserError(f"cannot freeze {frozen.layers} blocks: the model has {len(blocks)}")
    if frozen.embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if frozen.head:
        model.get_output_embeddings().requires_grad_(False)
    for block in blocks[: frozen.layers]:
        block.requires_grad_(False)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of blocks of a causal LM."""
    lists = [m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList)]
    if len(lists) != 1:
        raise UserError(f"cannot tell which modules of {type(model).__name__} are its blocks")
    return lists[0]


@contextmanager
def attention(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int
) -> Iterator[None]:
    """Attend in the way that trains fastest for rows of this length; set it back afterwards."""
    before, wanted = model.config._attn_implementation, hyperparameters.attention
    if wanted == "auto":
        short = longest <= SHORT_ROW and not torch.cuda.is_available()
        wanted = "eager" if short else "sdpa"
    model.set_attn_implementation(wanted)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
