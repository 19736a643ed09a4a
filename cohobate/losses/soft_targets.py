"""Soft targets: a teacher's distributions over the next token at N tokens of the text.

One class a form in which they are held, each with the loss and gradient against it:

    LiveTeacher, ProjectedTeacher, LiveEnsemble   live_teacher.py            the whole vocabulary
    TopK, StoredEnsemble                          top_k.py                   K ids and one bucket
    SampledIds                                    sampled_ids.py             ids drawn from p
    CrossTokenizerTargets                         cross_tokenizer_targets.py another vocabulary

Adding a form: a class like these. Nothing else needs to know of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from cohobate.errors import UserError
from cohobate.losses.base_divergence import Divergence
from cohobate.losses.divergences import Hard
from cohobate.losses.uld import Uld

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

ResponseTerm = Divergence | Hard | Uld
"""A term of a loss that compares what models predict; features compare what is inside."""
TINY = 1e-30
"""Stands for a probability of zero where its logarithm is taken."""


class TermGroup(NamedTuple):
    """Terms of one temperature, which share a softmax."""

    terms: Sequence[ResponseTerm]
    temperature: float
    """T of the softmax."""
    teacher_share: float = 1.0
    """t, where the soft target is t · teacher + (1 − t) · the student's own, detached."""
    compiled: bool = False
    """Let torch.compile fuse what is elementwise, where that helps."""


class SoftTargets(ABC):
    """A teacher's distributions at N tokens."""

    other_tokenizer: ClassVar[bool] = False
    """Whether the teacher has its own tokenizer, so that only `Uld` compares the two."""

    @abstractmethod
    def select(self, tokens: slice | Tensor) -> Self:
        """Return the targets of some of the N tokens."""

    def project(self) -> SoftTargets:
        """Return the same with the product of hidden states and head done, where there is one."""
        return self

    def chunk_end(self, start: int, stop: int) -> int:
        """Return where a chunk of tokens from `start` may end, at or near `stop`."""
        return stop

    def label_logprobs(self, labels_N: Tensor, chunk_tokens: int) -> Tensor:
        """Return the teacher's log-probabilities of the text's own tokens, (N,), detached.

        Raises:
            UserError: these targets do not have them.
        """
        raise UserError(
            "the probability of the text's own tokens needs one teacher, live or stored as top_k",
            where="terms: distillm2",
            fix="targets: models/adapt/<teacher>, or capture.signals: {type: top_k, ...}",
        )

    @abstractmethod
    def loss_and_grad(
        self, logits_NV: Tensor, labels_N: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        """Return the weighted loss of each term, (N,) each, and the gradient of their sum (N, V).

        Args:
            logits_NV: the student's, divided by the temperature already. They are overwritten.
            labels_N: the tokens of the text, for hard terms.
            term_group: the terms, with at least one soft term among them.

        Returns:
            The losses, and d loss/d (logits / T).

        Raises:
            UserError: a term that these targets cannot give.
        """


def subtract_labels(grad_NV: Tensor, labels_N: Tensor, hard: float) -> Tensor:
    """Add the part of a hard term's gradient that is at the label: −hard, in place."""
    if hard:
        hard_N1 = grad_NV.new_full((len(grad_NV), 1), -hard)
        grad_NV.scatter_add_(-1, labels_N[:, None], hard_N1)
    return grad_NV
