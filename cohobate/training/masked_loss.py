"""The loss of a masked language model: predictions of masked tokens, and features of its body."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cohobate.generation.encoders import EncoderOutputs, encoder_forward
from cohobate.losses.base_divergence import Divergence
from cohobate.losses.divergences import Hard
from cohobate.losses.layer_matching import LayerMatching
from cohobate.training.encoder_features import row_features
from cohobate.training.history import term_names
from cohobate.training.model_loss import NOTHING, ModelLoss


class MaskedLoss(ModelLoss):
    """A masked model and its loss at the masked tokens of a batch. N counts these.

    A feature counts at each masked token with its mean over the row's tokens, padding left out.

    Args:
        model: the student, of transformers' AutoModelForMaskedLM.
        responses: `hard`, the masked tokens themselves, and divergences from the teacher.
        teacher: a frozen encoder of the same tokenizer; a masked model where there are divergences.
        matching: the feature terms.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        responses: Sequence[Hard | Divergence],
        teacher: PreTrainedModel | None = None,
        matching: LayerMatching | None = None,
    ) -> None:
        super().__init__()
        self.model, self.responses, self.matching = model, tuple(responses), matching
        # in a tuple: a module of its own would be trained and saved
        self._teacher: tuple[PreTrainedModel, ...] = () if teacher is None else (teacher,)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The student."""
        return [self.model]

    @property
    def live_models(self) -> list[PreTrainedModel]:
        """The teacher, if there is one."""
        return [*self._teacher]

    @property
    def names(self) -> list[str]:
        """Columns of the history: the types of the terms."""
        return term_names([*self.responses, *(self.matching.terms if self.matching else ())])

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
        """Return Σ losses / divisor, and the losses of each masked token and term, (N, F).

        `teacher_inputs` are those of `MaskedTargets`.
        """
        width = ids_BS.shape[1]
        mask_BS = _mask(teacher_inputs["lengths_B"], width)
        parts = self.matching.parts if self.matching else frozenset()
        student = encoder_forward(self.model, ids_BS, mask_BS, positions_N, parts)
        teacher = None
        for model in self._teacher:
            wanted = positions_N if self._compares else positions_N[:1]
            teacher = self._teacher_outputs(model, ids_BS, mask_BS, wanted)
        losses = self._responses(student, teacher, teacher_inputs["labels_N"])
        losses_NF = torch.stack(losses, -1) if losses else student.logits.new_empty(0, 0)
        if self.matching is not None:
            assert teacher is not None, "features need a teacher"
            mean = losses_NF.sum(-1).mean() if losses else 0.0
            features_BF = row_features(self.matching, student.parts, teacher.parts, mask_BS, mean)
            features_NF = features_BF[positions_N // width]
            losses_NF = torch.cat([losses_NF, features_NF], -1) if losses else features_NF
        if weight_N is not None:
            losses_NF = losses_NF * weight_N[:, None]
        return losses_NF.sum() / divisor, losses_NF.detach()

    @property
    def _compares(self) -> bool:
        """Whether a term compares distributions with the teacher's."""
        return any(isinstance(term, Divergence) for term in self.responses)

    @torch.no_grad()
    def _teacher_outputs(
        self, model: PreTrainedModel, ids_BS: Tensor, mask_BS: Tensor, positions_N: Tensor
    ) -> EncoderOutputs:
        parts = self.matching.parts if self.matching else frozenset()
        # a classifier's head reads the first token: nothing is to be selected for it
        selected = positions_N if model.get_output_embeddings() is not None else None
        return encoder_forward(model, ids_BS, mask_BS, selected, parts)

    def _responses(
        self, student: EncoderOutputs, teacher: EncoderOutputs | None, labels_N: Tensor
    ) -> list[Tensor]:
        losses, logits_NV = [], student.logits.float()
        for term in self.responses:
            if isinstance(term, Hard):
                losses.append(term.weight * term.per_token(logits_NV.log_softmax(-1), labels_N))
                continue
            assert teacher is not None, "a divergence needs a teacher"
            t = term.temperature
            logp_NV = (teacher.logits.float() / t).log_softmax(-1)
            logq_NV = (logits_NV / t).log_softmax(-1)
            losses.append(term.scale * term.per_token(logp_NV, logq_NV))
        return losses


def _mask(lengths_B: Tensor, width: int) -> Tensor:
    """Return 1 at the tokens of rows of these lengths, (B, S)."""
    return (torch.arange(width, device=lengths_B.device) < lengths_B[:, None]).long()
