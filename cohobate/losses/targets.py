"""The targets of a student at N tokens: the text's tokens, and a teacher's distributions there."""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cohobate.errors import UserError
from cohobate.losses.distillm2 import DistiLLM2
from cohobate.losses.divergences import Hard
from cohobate.losses.soft_targets import ResponseTerm, SoftTargets, TermGroup, subtract_labels
from cohobate.losses.uld import Uld

BLOCK = 1 << 19
"""Numbers that elementwise work goes over at once on a CPU: 2 MB of them stay in the cache."""


class Targets(NamedTuple):
    """What the student is to predict at each of N tokens."""

    labels_N: Tensor
    """The token that the training text has."""
    teacher: SoftTargets | None = None
    """The teacher's distributions; None where there are hard terms alone."""
    teacher_share: float = 1.0
    """t, where the soft target is t · teacher + (1 − t) · the student's own, detached."""

    alpha_N: Tensor | None = None
    """For `DistiLLM2`, and None without it: the α of each token's row."""
    by_student_N: Tensor | None = None
    """Whether the student wrote the token's row."""
    weight_N: Tensor | None = None
    """Factor of each token's loss; 1 where None."""

    def project(self) -> "Targets":
        """Return the same with a live teacher's product done, once for a whole chunk."""
        return self._replace(teacher=self.teacher and self.teacher.project())

    def block_tokens(self, vocabulary: int) -> int:
        """Return how many tokens elementwise work takes at once: what a CPU's cache holds."""
        # all at once on a GPU, and where a block would cut a group of aligned tokens
        on_gpu = self.labels_N.device.type != "cpu"
        if on_gpu or (self.teacher is not None and self.teacher.other_tokenizer):
            return len(self.labels_N)
        return max(1, BLOCK // vocabulary)

    def chunks(self, chunk_tokens: int) -> Iterator[slice]:
        """Yield spans of about `chunk_tokens` tokens; the teacher decides where one may end."""
        start, end = 0, len(self.labels_N)
        while start < end:
            stop = min(start + chunk_tokens, end)
            if self.teacher is not None:
                stop = self.teacher.chunk_end(start, stop)
            yield slice(start, stop)
            start = stop

    def select(self, tokens: slice | Tensor) -> "Targets":
        """Return the targets of some of the tokens."""
        names = ("labels_N", "alpha_N", "by_student_N", "weight_N")
        tensors = {name: getattr(self, name) for name in names}
        parts = {name: x[tokens] for name, x in tensors.items() if x is not None}
        return self._replace(**parts, teacher=self.teacher and self.teacher.select(tokens))

    def loss_and_grad(
        self, logits_NV: Tensor, terms: Sequence[ResponseTerm], *, compiled: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of each term, (N, F), and the gradient of their sum, (N, V).

        Terms of one temperature share their softmax. The logits are overwritten.

        Raises:
            UserError: a term that the teacher's targets cannot give.
        """
        groups = defaultdict(list)
        for number, term in enumerate(terms):
            # a hard term is at T = 1, whatever the soft ones use
            groups[1.0 if isinstance(term, Hard) else term.softmax_temperature].append(number)
        losses_NF = logits_NV.new_empty(len(logits_NV), len(terms))
        grad_NV = None
        for temperature, numbers in groups.items():
            last = temperature == next(reversed(groups))  # the logits are needed no more
            scaled_NV = logits_NV.div_(temperature) if last else logits_NV / temperature
            term_group = TermGroup(
                [terms[n] for n in numbers], temperature, self.teacher_share, compiled
            )
            losses, group_NV = self._of_temperature(scaled_NV, term_group)
            losses_NF[:, numbers] = torch.stack(losses, -1)
            # chain rule: so far it is the gradient by logits / T
            group_NV = group_NV.div_(temperature) if temperature != 1 else group_NV
            grad_NV = group_NV if grad_NV is None else grad_NV.add_(group_NV)
        assert grad_NV is not None, "a loss needs at least one term"
        return losses_NF, grad_NV

    def _of_temperature(
        self, logits_NV: Tensor, term_group: TermGroup
    ) -> tuple[list[Tensor], Tensor]:
        hard = [term for term in term_group.terms if isinstance(term, Hard)]
        if len(hard) == len(term_group.terms):
            # no soft term: the teacher is not looked at
            return cross_entropy_and_grad(logits_NV, self.labels_N, hard)
        if self.teacher is None:
            fix = "targets: data/capture/<teacher> or models/adapt/<teacher>"
            raise UserError("a soft term needs a teacher's distributions", where="terms", fix=fix)
        self._check_tokenizer(term_group.terms, self.teacher)
        terms = [self._with_alphas(x) if isinstance(x, DistiLLM2) else x for x in term_group.terms]
        return self.teacher.loss_and_grad(
            logits_NV, self.labels_N, term_group._replace(terms=terms)
        )

    def _with_alphas(self, term: DistiLLM2) -> DistiLLM2:
        assert self.alpha_N is not None and self.by_student_N is not None, "distillm2 needs both"
        return term.with_alphas(self.alpha_N, self.by_student_N)

    @staticmethod
    def _check_tokenizer(terms: Sequence[ResponseTerm], teacher: SoftTargets) -> None:
        for term in terms:
            if isinstance(term, Uld) and not teacher.other_tokenizer:
                raise UserError(
                    "uld needs a teacher that is aligned by its own tokenizer",
                    where="terms",
                    fix="targets: models/adapt/<teacher>, or data/capture/<teacher> of the form "
                    "top_k or hidden",
                )
            if not isinstance(term, Uld | Hard) and teacher.other_tokenizer:
                raise UserError(
                    f"{term.type} needs a teacher of the student's tokenizer",
                    where="terms",
                    fix="use {type: uld}",
                )


def cross_entropy_and_grad(
    logits_NV: Tensor, labels_N: Tensor, terms: Sequence[Hard]
) -> tuple[list[Tensor], Tensor]:
    """Return the loss of each hard term, (N,), and the gradient of their sum, hard · (q − 1[y])."""
    max_N1 = logits_NV.amax(-1, keepdim=True)
    # read before the logits are overwritten
    label_N1 = logits_NV.gather(-1, labels_N[:, None]) - max_N1
    exp_NV = logits_NV.sub_(max_N1).exp_()
    total_N1 = exp_NV.sum(-1, keepdim=True)
    losses = [-term.weight * (label_N1 - total_N1.log())[:, 0] for term in terms]
    hard = sum(term.weight for term in terms)
    # a true division: `hard / tensor` multiplies by the reciprocal, which rounds differently
    share_N1 = torch.full_like(total_N1, hard) / total_N1
    return losses, subtract_labels(exp_NV.mul_(share_N1), labels_N, hard)
