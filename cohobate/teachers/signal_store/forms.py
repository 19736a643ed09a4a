"""The forms in which a teacher's distributions are stored; one class a form.

    form      what is kept of a token                                  losses that it allows
    top_k     the K most likely ids, log p of each, mass of the rest   all, over K + 1 outcomes
    sampled   ids drawn from p, and its entropy                        forward_kl, unbiased; hard
    hidden    the last hidden state, for the teacher's head            all, over the vocabulary

Adding a form: write a class with the methods of `SignalForm`, and name it in `Form`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from cohobate.errors import UserError
from cohobate.teachers.signal_store.form import LossTerm, Packed, SignalForm, Signals
from cohobate.teachers.signal_store.packing import Array, Draws
from cohobate.teachers.signal_store.top_k_form import StoredTopK

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.losses.live_teacher import LiveTeacher
    from cohobate.losses.sampled_ids import SampledIds
    from cohobate.models.lm_head import Head

__all__ = ["Form", "StoredDraws", "StoredHidden", "StoredTopK"]


class StoredDraws(SignalForm):
    """Ids drawn from p, with the count of each: an unbiased estimate
    (cohobate/losses/sampled_ids.py).

    The draws are stratified: one in each of U equal slices of the cumulative distribution. That is
    as unbiased as independent draws, with less variance.
    """

    type: Literal["sampled"]
    draws: int = Field(64, ge=1, le=4096)
    """U: ids drawn for each token."""
    temperature: float = Field(1.0, gt=0)
    """Of the softmax that is drawn from, and of the loss that uses it."""
    seed: int = 0
    """Seed of the draws, beside the row's own key: batches do not decide them."""

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return the dtype of one token's record, beside its draws."""
        return np.dtype([("distinct", "u1" if self.draws < 256 else "<u2"), ("entropy", "<f2")])

    def uniform_numbers(self, key: int, length: int) -> Array:
        """Return the uniform numbers of a row's draws, (length, U)."""
        # a counter-based generator: any key gives a stream of its own
        bits = np.random.Philox(key=np.array([key, self.seed], dtype=np.uint64))
        return np.random.Generator(bits).random((length, self.draws))

    def draw_sizes(self, tokens: Array, vocabulary: int) -> Array:
        """Return how many bytes each token's draws take, (N,)."""
        return Draws(vocabulary, self.draws).sizes(tokens["distinct"])

    def measure(self, head: "Head", hidden_ND: "Tensor", uniform_NU: "Tensor") -> Signals:
        """Return the drawn ids, rising, and the entropy."""
        import torch

        logits_NV = head.logits(hidden_ND)
        logp_NV = logits_NV.div_(self.temperature).log_softmax(-1)
        p_NV = logp_NV.exp()
        entropy_N = -(p_NV * logp_NV).sum(-1)
        # float64: in float32 the sum over a large vocabulary is not exact enough
        cumulative_NV = p_NV.cumsum(-1, dtype=torch.float64)
        # one point in each of U equal slices; they rise, and so do the ids
        points_NU = (torch.arange(self.draws, device=uniform_NU.device) + uniform_NU) / self.draws
        points_NU *= cumulative_NV[:, -1:]  # the sum is 1 but for rounding
        ids_NU = torch.searchsorted(cumulative_NV, points_NU, right=True)
        # rounding must not point behind the last id
        return {"ids_NU": ids_NU.clamp_max(logp_NV.shape[1] - 1), "entropy_N": entropy_N}

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return the number of distinct ids, whose mean is reported."""
        ids_NU = signals["ids_NU"]
        return {"mean_distinct_draws": (ids_NU[:, 1:] != ids_NU[:, :-1]).sum(-1) + 1}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        distinct_N, draws = Draws(vocabulary, self.draws).pack(signals["ids_NU"].numpy())
        tokens = np.zeros(len(distinct_N), self.record(vocabulary, 0))
        tokens["distinct"], tokens["entropy"] = distinct_N, signals["entropy_N"].numpy()
        return Packed(tokens, draws)

    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the tensors of some tokens."""
        import torch

        distinct_N = packed.tokens["distinct"]
        ids_NK, counts_NK = Draws(vocabulary, self.draws).unpack(distinct_N, packed.draws)
        return {
            "ids_NK": torch.from_numpy(ids_NK),
            "share_NK": torch.from_numpy(counts_NK / self.draws),
            "entropy_N": torch.from_numpy(packed.tokens["entropy"].astype(np.float32)),
        }

    def restrict(self, signals: Signals, student_ids_V: "Tensor", size: int) -> Signals:
        """Return the signals for a student of only some ids; draws of the others are left out.

        What remains is an unbiased estimate of p over the ids that the student has.
        """
        ids_NK = student_ids_V[signals["ids_NK"]]
        share_NK = signals["share_NK"].masked_fill(ids_NK < 0, 0)
        return signals | {"ids_NK": ids_NK.clamp_min(0), "share_NK": share_NK}

    def targets(self, signals: Signals, head: "Head | None") -> "SampledIds":
        """Return the soft targets of a loss."""
        from cohobate.losses.sampled_ids import SampledIds

        ids_NK, share_NK = signals["ids_NK"], signals["share_NK"]
        return SampledIds(ids_NK, share_NK, signals["entropy_N"], self.temperature)

    def check(self, terms: Sequence[LossTerm]) -> None:
        """Check that soft terms are linear in p, at the temperature of the draws."""
        for term in terms:
            if term.type == "hard":
                continue
            same = getattr(term, "softmax_temperature", None) == self.temperature
            tempers_outcomes = getattr(term, "tempers", "") == "outcomes" and self.temperature != 1
            if term.type != "forward_kl" or not same or tempers_outcomes:
                raise UserError(
                    f"{term.type} has no unbiased estimate from ids drawn at temperature "
                    f"{self.temperature:g}: only forward_kl at that temperature has",
                    fix="capture.signals: {type: top_k, ...} or {type: hidden}",
                )


class StoredHidden(SignalForm):
    """The teacher's last hidden state; its head, stored once, gives the whole distribution.

    Stored in bfloat16 when the teacher runs in bfloat16, which loses nothing; else in float16.
    """

    type: Literal["hidden"]
    needs_head: ClassVar[bool] = True

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return the dtype of one token's record on disk."""
        return np.dtype([("hidden", "<i2", (width,))])

    def measure(self, head: "Head", hidden_ND: "Tensor", uniform_NU: "Tensor") -> Signals:
        """Return the hidden states in a 16-bit format."""
        import torch

        dtype = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else torch.float16
        return {"hidden_ND": hidden_ND.to(dtype)}

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return no statistics."""
        return {}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        import torch

        # as bits: numpy has no bfloat16
        hidden_ND = signals["hidden_ND"].view(torch.int16).numpy()
        tokens = np.zeros(len(hidden_ND), self.record(vocabulary, hidden_ND.shape[1]))
        tokens["hidden"] = hidden_ND
        return Packed(tokens, np.empty(0, np.uint8))

    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the bits of the hidden states; `targets` takes their dtype from the head."""
        import torch

        return {"hidden_ND": torch.from_numpy(packed.tokens["hidden"].astype(np.int16))}

    def restrict(self, signals: Signals, student_ids_V: "Tensor", size: int) -> Signals:
        """Return the signals as they are: the store cuts the head instead."""
        return signals

    def targets(self, signals: Signals, head: "Head | None") -> "LiveTeacher":
        """Return the soft targets of a loss."""
        import torch

        from cohobate.losses.live_teacher import LiveTeacher

        assert head is not None
        dtype = head.weight_VD.dtype
        stored = torch.bfloat16 if dtype == torch.bfloat16 else torch.float16
        return LiveTeacher(signals["hidden_ND"].view(stored).to(dtype), head)

    def check(self, terms: Sequence[LossTerm]) -> None:
        """Accept every term: the hidden state gives the whole distribution."""


Form = Annotated[StoredTopK | StoredDraws | StoredHidden, Field(discriminator="type")]
"""The forms that `capture.signals` can name."""
