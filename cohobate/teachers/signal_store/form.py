"""The interface of a form of stored signals, and the types that all forms share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np

from cohobate.params import Section
from cohobate.teachers.signal_store.packing import Array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cohobate.losses.soft_targets import SoftTargets
    from cohobate.models.lm_head import Head

Signals = dict[str, "Tensor"]
"""The tensors that a form keeps of N tokens, by their names."""


class LossTerm(Protocol):
    """What a form needs to know of a term of a loss."""

    @property
    def type(self) -> str:
        """Its name in params.yaml."""


class Packed(NamedTuple):
    """Signals as bytes: a record of fixed size a token, and the draws of them all."""

    tokens: Array
    draws: Array
    """Bytes, token after token; empty where the form draws nothing."""


class SignalForm(Section, ABC):
    """A form in which a teacher's distributions are stored."""

    needs_head: ClassVar[bool] = False
    """Whether the store keeps the teacher's head too."""

    def for_vocabulary(self, size: int) -> Self:
        """Return the form as it is for a vocabulary of this size."""
        return self

    def uniform_numbers(self, key: int, length: int) -> Array:
        """Return the uniform numbers in [0, 1) that draw a row's ids, (length, U) for U draws.

        They depend on the row's key alone, so that batches do not decide what is drawn.
        """
        return np.empty((length, 0))

    def draw_sizes(self, tokens: Array, vocabulary: int) -> Array:
        """Return how many bytes each token's draws take, (N,)."""
        return np.zeros(len(tokens), dtype=np.int64)

    @abstractmethod
    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return the dtype of one token's record on disk."""

    @abstractmethod
    def measure(self, head: Head, hidden_ND: Tensor, uniform_NU: Tensor) -> Signals:
        """Return what is kept of a teacher's distributions.

        Args:
            head: the teacher's.
            hidden_ND: the teacher's last hidden states at N tokens.
            uniform_NU: numbers in [0, 1) for the draws (`uniform_numbers`).
        """

    def serves(self, other: SignalForm) -> bool:
        """Say whether signals of another form can be made from these: `narrow` makes them."""
        return self == other

    def narrow(self, signals: Signals, other: SignalForm) -> Signals:
        """Return the signals of another form, which these serve, from what `unpack` returned."""
        return signals

    @abstractmethod
    def figures(self, signals: Signals) -> dict[str, Tensor]:
        """Return statistics of each token, (N,) each, whose means the stage reports."""

    @abstractmethod
    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""

    @abstractmethod
    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the tensors of some tokens."""

    @abstractmethod
    def restrict(self, signals: Signals, student_ids_V: Tensor, size: int) -> Signals:
        """Return the signals for a student that has only some of the teacher's tokens.

        Args:
            signals: what `unpack` returned, in the teacher's ids.
            student_ids_V: the student's id of each of the teacher's, −1 where it has none.
            size: number of ids that the student has.
        """

    @abstractmethod
    def targets(self, signals: Signals, head: Head | None) -> SoftTargets:
        """Return the soft targets of a loss; `head` is the teacher's, where the form needs it."""

    @abstractmethod
    def check(self, terms: Sequence[LossTerm]) -> None:
        """Check that every term of a loss can be computed from these signals.

        Raises:
            UserError: a term cannot; names it.
        """
