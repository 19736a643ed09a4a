"""The loss of a classifier: cross-entropy with labels, a teacher's distribution over them, and
features of a teacher's body."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from cohobate.fast.forward_pass import ForwardOutputs
from cohobate.generation.encoders import encoder_forward
from cohobate.losses.layer_matching import LayerMatching
from cohobate.scoring.labels import NO_LABEL
from cohobate.training.encoder_features import row_features
from cohobate.training.history import term_names
from cohobate.training.model_loss import NOTHING, ModelLoss


class ClassifierLoss(ModelLoss):
    """A classifier and its loss on rows whose one learnt token is the place of their label.

    The loss of a row is (1 − soft) · CE(label) + soft · T² · KL(teacher ‖ student), both softmaxes
    at T (Hinton, Vinyals & Dean 2015, section 2). A row without a label has the second term alone.

    Args:
        model: the student, of transformers' AutoModelForSequenceClassification.
        soft: share of the teacher's distribution; 0 needs none.
        temperature: T.
        teacher: a frozen encoder of the same tokenizer, where there are feature terms.
        matching: the feature terms; each adds its mean over the row's tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        soft: float = 0.0,
        temperature: float = 1.0,
        teacher: PreTrainedModel | None = None,
        matching: LayerMatching | None = None,
    ) -> None:
        super().__init__()
        self.model, self.soft, self.temperature = model, soft, temperature
        self.matching = matching
        # in a tuple: a module of its own would be trained and saved
        self._teacher: tuple[PreTrainedModel, ...] = () if teacher is None else (teacher,)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The student."""
        return [self.model]

    @property
    def live_models(self) -> list[PreTrainedModel]:
        """The teacher whose features are compared, if there is one."""
        return [*self._teacher]

    @property
    def names(self) -> list[str]:
        """Columns of the history."""
        features = term_names(self.matching.terms) if self.matching else []
        return [*(["hard"] if self.soft < 1 else []), *(["soft"] if self.soft else []), *features]

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        weight_N: Tensor | None = None,
        teacher_inputs: Mapping[str, Any] = NOTHING,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return Σ losses / divisor, and the losses of each row and term, (N, F), detached.

        N is B: a row has one label. `positions_N` are the last tokens of the texts.
        """
        width = ids_BS.shape[1]
        places_S = torch.arange(width, device=ids_BS.device)
        # rows are padded on the right, and an encoder would attend to padding
        mask_BS = places_S <= (positions_N % width)[:, None]
        parts = self.matching.parts if self.matching else frozenset()
        student = encoder_forward(self.model, ids_BS, mask_BS.long(), parts=parts)
        logits_BC = student.logits.float()
        terms = []
        if self.soft < 1:
            hard_B = F.cross_entropy(logits_BC, labels_N, ignore_index=NO_LABEL, reduction="none")
            terms.append((1 - self.soft) * hard_B)
        if self.soft:
            terms.append(self.soft * self._soft(logits_BC, teacher_inputs["labels_BC"]))
        losses_NF = torch.stack(terms, -1)
        if self.matching is not None:
            mean = losses_NF.sum(-1).mean()
            features_BF = self._features(self.matching, student.parts, ids_BS, mask_BS.long(), mean)
            losses_NF = torch.cat([losses_NF, features_BF], -1)
        if weight_N is not None:
            losses_NF = losses_NF * weight_N[:, None]
        return losses_NF.sum() / divisor, losses_NF.detach()

    def _features(
        self,
        matching: LayerMatching,
        student: ForwardOutputs,
        ids_BS: Tensor,
        mask_BS: Tensor,
        response: Tensor,
    ) -> Tensor:
        """Return the loss of each row and feature term, (B, F)."""
        model = self._teacher[0]
        # a masked model's head is as large as its body, and is not wanted
        first = ids_BS.new_zeros(1) if model.get_output_embeddings() is not None else None
        with torch.no_grad():
            teacher = encoder_forward(model, ids_BS, mask_BS, first, matching.parts)
        return row_features(matching, student, teacher.parts, mask_BS, response)

    def _soft(self, logits_BC: Tensor, logp_BC: Tensor) -> Tensor:
        """Return T² · KL(teacher ‖ student) of each row, (B,)."""
        t = self.temperature
        teacher_BC = (logp_BC / t).log_softmax(-1)
        student_BC = (logits_BC / t).log_softmax(-1)
        divergence_B = F.kl_div(student_BC, teacher_BC, log_target=True, reduction="none").sum(-1)
        return t * t * divergence_B
