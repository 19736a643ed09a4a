"""The loss of mutual learning: several students, each a teacher of the others."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.fast.forward_pass import forward
from cohobate.losses.base_divergence import Divergence
from cohobate.losses.divergences import Term
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.losses.targets import Targets
from cohobate.models.lm_head import Head
from cohobate.training.history import term_names
from cohobate.training.model_loss import ModelLoss


class MutualLoss(ModelLoss):
    """All peers and their losses as one module; one backward pass gives all of them gradients.

    Hard terms are each peer's own; a soft term is the mean over the other peers, whose
    distributions get no gradient (Zhang et al. 2018, section 3.3). All peers step at once, and the
    gradient is clipped by its norm over all of them.
    """

    def __init__(
        self,
        peers: Sequence[PreTrainedModel],
        terms: Sequence[Term],
        imitates: Sequence[bool],
        *,
        chunk_tokens: int = 512,
        vocabulary: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)
        self.terms, self.imitates = tuple(terms), tuple(imitates)
        self.chunk_tokens, self.vocabulary, self.compiled = chunk_tokens, vocabulary, compiled

    @property
    def models(self) -> list[PreTrainedModel]:
        """The peers."""
        return list(self.peers)  # type: ignore[arg-type]

    @property
    def names(self) -> list[str]:
        """Columns of the history: the terms of the first peer's loss."""
        return term_names(self.terms)

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        weight_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the first peer's loss, with the gradients of all, and its losses (N, F)."""
        hidden = [forward(peer, ids_BS, positions_N).last_hidden_ND for peer in self.peers]
        heads = [Head.of(peer, self.vocabulary) for peer in self.peers]
        # detached: a peer is not trained to be easy to imitate
        peers = [
            LiveTeacher(h_ND.detach().to(self._dtype(h_ND)), head)
            for h_ND, head in zip(hidden, heads, strict=True)
        ]
        targets, results = Targets(labels_N, weight_N=weight_N), []
        for n, (hidden_ND, head) in enumerate(zip(hidden, heads, strict=True)):
            others = peers[:n] + peers[n + 1 :] if self.imitates[n] else []
            results.append(self._loss(hidden_ND, head, targets, others, divisor))
        (loss, losses_NF), *rest = results
        # adds the other peers' gradients, and nothing to the value
        beside = sum(other - other.detach() for other, _ in rest)
        return loss + beside, losses_NF

    def _loss(
        self,
        hidden_ND: Tensor,
        head: Head,
        targets: Targets,
        others: Sequence[LiveTeacher],
        divisor: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        total = hidden_ND.new_zeros(())
        losses_NF = hidden_ND.new_zeros(len(hidden_ND), len(self.terms), dtype=torch.float32)
        for number, teacher in enumerate(others or [None]):
            # one pass for each teacher: hard terms count in the first alone, soft terms in all
            columns = [
                n
                for n, term in enumerate(self.terms)
                if (teacher is not None if isinstance(term, Divergence) else number == 0)
            ]
            shared = [self._share(self.terms[n], len(others)) for n in columns]
            loss, part_NF = fused_head_loss(
                hidden_ND,
                head,
                shared,
                targets._replace(teacher=teacher),
                divisor=divisor,
                chunk_tokens=self.chunk_tokens,
                compiled=self.compiled,
            )
            total = total + loss
            losses_NF[:, columns] += part_NF
        return total, losses_NF

    @staticmethod
    def _share(term: Term, others: int) -> Term:
        if not isinstance(term, Divergence) or others < 2:
            return term
        # each of the passes adds its share: together they are the mean over the others
        return term.model_copy(update={"weight": term.weight / others})

    @staticmethod
    def _dtype(hidden_ND: Tensor) -> torch.dtype:
        """Return the dtype of the products, as in the student's own head."""
        device = hidden_ND.device.type
        autocast = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if autocast else hidden_ND.dtype
