"""The loss of an embedder: a sum of terms on the vectors of a batch's texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from cohobate.models.embedders import pooled
from cohobate.training.embedding_terms import EmbeddingTerm, Texts
from cohobate.training.model_loss import NOTHING, ModelLoss


class EmbeddingLoss(ModelLoss):
    """An embedder and its loss on the texts of rows.

    A row's ids are those of its texts, one behind the other, and a token more; `positions_N` are
    the last tokens of the texts. N counts texts.

    Args:
        model: the student.
        terms: their weighted sum is the loss of a text.
        width: of the teacher's vectors, where a term needs them. Where the student's are of another
            width, a linear projection is trained beside it, and dropped afterwards.
        seed: of the projection's initial weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        terms: Sequence[EmbeddingTerm],
        width: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.terms = model, tuple(terms)
        own = int(model.config.hidden_size)
        self.projection: nn.Module = nn.Identity()
        if width is not None and width != own:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projection = nn.Linear(own, width, bias=False)
                nn.init.orthogonal_(self.projection.weight)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The student."""
        return [self.model]

    @property
    def names(self) -> list[str]:
        """Columns of the history: the types of the terms."""
        return [term.type for term in self.terms]

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        divisor: float | Tensor,
        weight_N: Tensor | None = None,
        teacher_inputs: Mapping[str, Any] = NOTHING,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each text and term, (N, F), detached."""
        row_N, ids_NM, mask_NM = split_texts(ids_BS, positions_N)
        raw_ND = pooled(self.model, ids_NM, mask_NM)
        # matrix products of a batch are small, and a similarity needs its digits
        with torch.autocast(raw_ND.device.type, enabled=False):
            projected_ND = self.projection(raw_ND)
            teacher_ND = teacher_inputs.get("vectors_ND")
            texts = Texts(raw_ND, projected_ND, teacher_ND, row_N, ids_NM)
            losses_NF = torch.stack([one.weight * one.per_text(texts) for one in self.terms], -1)
        if weight_N is not None:
            losses_NF = losses_NF * weight_N[:, None]
        return losses_NF.sum() / divisor, losses_NF.detach()


def split_texts(ids_BS: Tensor, positions_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows' texts as rows of their own.

    Args:
        ids_BS: the texts of each row, one behind the other.
        positions_N: the last token of each text, counted through B·S.

    Returns:
        The row of each text (N,), its ids with 0 behind its end (N, M), and the mask of its tokens.
    """
    row_N, end_N = positions_N // ids_BS.shape[1], positions_N % ids_BS.shape[1]
    follows_N = F.pad(row_N[1:] == row_N[:-1], (1, 0))  # another text of the row is before it
    start_N = torch.where(follows_N, F.pad(end_N[:-1] + 1, (1, 0)), 0)
    length_N = end_N - start_N + 1
    place_M = torch.arange(int(length_N.max()), device=ids_BS.device)
    mask_NM = place_M < length_N[:, None]
    at_NM = (start_N[:, None] + place_M).clamp_max(ids_BS.shape[1] - 1)
    ids_NM = ids_BS[row_N[:, None], at_NM].masked_fill(~mask_NM, 0)
    return row_N, ids_NM, mask_NM.long()
