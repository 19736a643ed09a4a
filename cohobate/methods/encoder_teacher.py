"""An encoder in memory as the teacher of a phase: a masked model or a classifier, frozen."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cohobate.errors import UserError
from cohobate.losses.feature_losses import (
    Attention,
    Feature,
    HiddenCosine,
    HiddenMse,
    RelationalDistance,
    SimilarityPreserving,
)
from cohobate.methods.phase import checkpoint_path
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.losses.layer_matching import LayerMatching

AnyEncoderFeature = HiddenMse | HiddenCosine | Attention | RelationalDistance | SimilarityPreserving
"""The features that encoders are compared by; relations of values are those of decoders."""


class _TeacherSettings(Protocol):
    """What a phase says of its teacher."""

    @property
    def targets(self) -> str: ...
    @property
    def teacher_precision(self) -> Precision: ...
    @property
    def attention(self) -> str: ...


class EncoderTeacher(NamedTuple):
    """A frozen encoder with its head, on the device on which it is fastest."""

    model: "PreTrainedModel"
    folder: Path

    @classmethod
    def load(
        cls,
        phase: _TeacherSettings,
        seed: int,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        needs_tokens: bool = False,
    ) -> "EncoderTeacher":
        """Load the teacher in a phase's `targets`; that of an earlier phase is of the same seed.

        Args:
            phase: its settings.
            seed: of the phase.
            tokenizer: the student's.
            needs_tokens: whether its predictions of masked tokens are wanted.

        Raises:
            UserError: it is no encoder with a head, or reads other tokens than the student.
        """
        from cohobate.fast.frozen import load_frozen

        folder = checkpoint_path(Path(phase.targets), seed)
        where = f"targets: {phase.targets}"
        masked = checkpoints.is_masked(folder)
        if needs_tokens and not masked:
            raise UserError(
                "the teacher predicts no masked tokens",
                where=where,
                fix="targets: models/assist/<a phase of method: mlm>; or features alone as terms",
            )
        if not (masked or checkpoints.is_classifier(folder)):
            raise UserError(
                "the teacher is neither a masked model nor a classifier",
                where=where,
                fix="teachers.<key>.kind: masked or classifier, or a phase of mlm or classify",
            )
        model, theirs = load_frozen(
            folder,
            precision=phase.teacher_precision,
            attention="eager" if phase.attention == "eager" else "sdpa",
            device=checkpoints.accelerator(),
        )
        if theirs.get_vocab() != tokenizer.get_vocab():
            raise UserError(
                "teacher and student have different tokenizers: their tokens do not match",
                where=where,
                fix="init_student.model: the teacher's encoder, with fewer `layers` or other "
                "`sizes`; or distributions over labels alone",
            )
        return cls(model, folder)

    def matching(
        self, student: "PreTrainedModel", features: Sequence[Feature], seed: int
    ) -> "LayerMatching | None":
        """Return the layer maps and projections of feature terms; None where there are none."""
        from cohobate.losses.layer_matching import LayerMatching

        return LayerMatching(features, student, self.model, seed) if features else None


def attends_eagerly(attention: str, features: Sequence[Feature]) -> None:
    """Refuse attention maps of an implementation that does not give them.

    Raises:
        ValueError: says which one does.
    """
    if attention != "eager" and any(isinstance(term, Attention) for term in features):
        raise ValueError("attention maps need `attention: eager`")
