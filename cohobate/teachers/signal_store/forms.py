"""The forms in which a teacher's distributions are stored; one class a form.

A form says what of the teacher's logits it keeps (`measure`), how that lies on disk (`pack`,
`unpack`), what a loss compares the student with (`targets`), and which losses that allows
(`check`). To add a form: its class, and its name in `Form` at the bottom.

    form      what is kept of a token                                  which losses
    top_k     the K likeliest ids, log p of each, the mass of the rest   all, over K + 1 outcomes
    sampled   N ids drawn from p, and its entropy                        forward_kl, unbiased; hard
    hidden    the last hidden state, to go through the teacher's head    all, over the vocabulary

Shapes: N tokens, V vocabulary, D width, K stored ids, T temperatures, S draws.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.teachers.signal_store import packing
from cohobate.teachers.signal_store.packing import Array, Draws, IdSets

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.losses.sampled import SampledIds
    from cohobate.losses.targets import LiveTeacher, TopK
    from cohobate.models.lm_head import Head

Signals = dict[str, "Tensor"]
"""What a form keeps of some tokens, by the names of the tensors."""


class Loss(Protocol):
    """What a form must know of a term of a loss."""

    @property
    def type(self) -> str:
        """Its name."""


class Packed(NamedTuple):
    """Signals as bytes: a record of fixed size a token, and the draws of them all."""

    tokens: Array
    draws: Array
    """Bytes, token after token; none where the form draws nothing."""


class SignalForm(Section):
    """What most forms have in common: they draw nothing, and need no head."""

    needs_head: ClassVar[bool] = False

    def fitted(self, vocabulary: int) -> Self:
        """Return the form for a vocabulary of this size."""
        return self

    def rng(self, key: int, length: int) -> Array:
        """Return uniform numbers for the draws of a row, (length, draws)."""
        return np.empty((length, 0))

    def drawn(self, tokens: Array, vocabulary: int) -> Array:
        """Return the bytes of each token's draws."""
        return np.zeros(len(tokens), dtype=np.int64)


class StoredTopK(SignalForm):
    """The K most likely ids with their log-probabilities, and one number for all others."""

    type: Literal["top_k"]
    k: int = Field(32, ge=1)
    """K: ids stored for each token; the mass of all others is one number a temperature."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which losses over the whole vocabulary can use them."""

    def fitted(self, vocabulary: int) -> Self:
        """Return the form with no more ids than there are."""
        return self.model_copy(update={"k": min(self.k, vocabulary)})

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return what one token takes on disk."""
        ids = IdSets.of(vocabulary, self.k)
        bytes_of = [("ids", "u1", (ids.size,)), ("codes", "u1", (self.k,))]
        numbers = [
            ("top", "<f2"),
            ("widest", "<f2"),
            ("leftover", "<f2", (len(self.temperatures),)),
        ]
        return np.dtype([*bytes_of, *numbers])  # type: ignore[list-item]

    def measure(self, head: "Head", hidden_ND: "Tensor", dice_NS: "Tensor") -> Signals:
        """Return the most likely ids, their log p, and log Σ p^(1/T) over all others.

        The logits are overwritten: one pass of exp over V serves every temperature.
        """
        import torch

        logits_NV = head.logits(hidden_ND)
        highest_NK, ids_NK = logits_NV.topk(self.k, -1)
        top_N1 = highest_NK[:, :1]
        others_NV = logits_NV.sub_(top_N1).exp_().scatter_(-1, ids_NK, 0)
        highest_NK = highest_NK - top_N1
        total_N1 = others_NV.sum(-1, keepdim=True) + highest_NK.exp().sum(-1, keepdim=True)
        log_total_N1 = total_N1.log()
        leftover = [
            (others_NV if t == 1 else others_NV.pow(1 / t)).sum(-1).log() - log_total_N1[:, 0] / t
            for t in self.temperatures
        ]
        logp_NK, rest_logprob_NQ = highest_NK - log_total_N1, torch.stack(leftover, -1)
        clamped = (x.clamp_min(packing.SMALLEST) for x in (logp_NK, rest_logprob_NQ))
        return dict(zip(("logp_NK", "rest_logprob_NQ", "ids_NK"), (*clamped, ids_NK), strict=True))

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return what is worth knowing of each token on average."""
        return {"mean_mass_of_top_k": signals["logp_NK"].exp().sum(-1)}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        ids_NK, logp_NK = signals["ids_NK"].numpy(), signals["logp_NK"].numpy()
        order_NK = ids_NK.argsort(1)
        ids_NK, logp_NK = (np.take_along_axis(x, order_NK, 1) for x in (ids_NK, logp_NK))
        tokens = np.zeros(len(ids_NK), self.record(vocabulary, 0))
        tokens["ids"] = IdSets.of(vocabulary, self.k).pack(ids_NK)
        tokens["top"], tokens["widest"], tokens["codes"] = packing.pack_gaps(logp_NK)
        tokens["leftover"] = signals["rest_logprob_NQ"].numpy()
        return Packed(tokens, np.empty(0, np.uint8))

    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the tensors of some tokens; the ids of a token rise."""
        import torch

        tokens = packed.tokens
        logp_NK = packing.unpack_gaps(tokens["top"], tokens["widest"], tokens["codes"])
        return {
            "ids_NK": torch.from_numpy(IdSets.of(vocabulary, self.k).unpack(tokens["ids"])),
            "logp_NK": torch.from_numpy(logp_NK),
            "rest_logprob_NQ": torch.from_numpy(tokens["leftover"].astype(np.float32)),
        }

    def only(self, signals: Signals, known_V: "Tensor", size: int) -> Signals:
        """Return the signals for a student of only `size` of the ids.

        What the stored ids that it lacks weighed goes to the bucket of all others. Their places
        are taken by ids out of that bucket, each with an even share of it.
        """
        import torch

        from cohobate.teachers.signal_store.buckets import unused, with_lost

        ids_NK, logp_NK = known_V[signals["ids_NK"]], signals["logp_NK"]
        lacks_NK = ids_NK < 0
        if not lacks_NK.any():
            return signals | {"ids_NK": ids_NK}
        k = ids_NK.shape[1]
        if size < 2 * k:
            raise UserError(
                f"a student of {size} ids cannot use signals of {k} ids a token",
                fix="lower capture.signals.k, or keep more of the vocabulary",
            )
        rest_NQ = with_lost(signals["rest_logprob_NQ"], logp_NK, lacks_NK, self.temperatures)
        one = self.temperatures.index(1.0) if 1.0 in self.temperatures else 0
        even_N1 = rest_NQ[:, one, None] - float(np.log(size))
        return {
            "ids_NK": torch.where(lacks_NK, unused(ids_NK, lacks_NK, size), ids_NK),
            "logp_NK": torch.where(lacks_NK, even_N1, logp_NK),
            "rest_logprob_NQ": rest_NQ,
        }

    def targets(self, signals: Signals, head: "Head | None") -> "TopK":
        """Return what a loss compares the student with."""
        from cohobate.losses.targets import TopK

        ids_NK, logp_NK = signals["ids_NK"], signals["logp_NK"]
        return TopK(ids_NK, logp_NK, signals["rest_logprob_NQ"], self.temperatures)

    def check(self, terms: Sequence[Loss]) -> None:
        """Refuse a temperature at which the mass of the rest was not stored."""
        for term in terms:
            wanted = getattr(term, "softmax_temperature", None)
            if wanted is not None and wanted not in self.temperatures:
                shown = ", ".join(f"{t:g}" for t in self.temperatures)
                raise UserError(
                    f"{term.type} at temperature {wanted:g}: the stored signals have the leftover "
                    f"mass at {shown} only",
                    fix=f"add {wanted:g} to capture.signals.temperatures, or `tempers: outcomes`",
                )


class StoredDraws(SignalForm):
    """Ids drawn from p, with how often each came: an unbiased estimate
    (cohobate/losses/sampled.py).

    The draws are stratified: one in each of N equal slices of the cumulative distribution, which
    is as unbiased as independent draws, with less variance.
    """

    type: Literal["sampled"]
    draws: int = Field(64, ge=1, le=4096)
    """N: ids drawn for each token."""
    temperature: float = Field(1.0, gt=0)
    """Of the softmax that is drawn from, and of the loss that uses it."""
    seed: int = 0
    """Of the draws, with the row's own name: batches do not matter."""

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return what one token takes on disk beside its draws."""
        return np.dtype([("distinct", "u1" if self.draws < 256 else "<u2"), ("entropy", "<f2")])

    def rng(self, key: int, length: int) -> Array:
        """Return uniform numbers for the draws of a row: they are its own."""
        bits = np.random.Philox(key=np.array([key, self.seed], dtype=np.uint64))
        return np.random.Generator(bits).random((length, self.draws))

    def drawn(self, tokens: Array, vocabulary: int) -> Array:
        """Return the bytes of each token's draws."""
        return Draws(vocabulary, self.draws).sizes(tokens["distinct"])

    def measure(self, head: "Head", hidden_ND: "Tensor", dice_NS: "Tensor") -> Signals:
        """Return the drawn ids, rising, and the entropy; `dice_NS` are uniform in [0, 1)."""
        import torch

        logits_NV = head.logits(hidden_ND)
        logp_NV = logits_NV.div_(self.temperature).log_softmax(-1)
        p_NV = logp_NV.exp()
        entropy_N = -(p_NV * logp_NV).sum(-1)
        cumulative_NV = p_NV.cumsum(-1, dtype=torch.float64)
        slices_NS = (torch.arange(self.draws, device=dice_NS.device) + dice_NS) / self.draws
        slices_NS *= cumulative_NV[:, -1:]
        ids_NS = torch.searchsorted(cumulative_NV, slices_NS, right=True)
        return {"ids_NS": ids_NS.clamp_max(logp_NV.shape[1] - 1), "entropy_N": entropy_N}

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return what is worth knowing of each token on average."""
        ids_NS = signals["ids_NS"]
        return {"mean_distinct_draws": (ids_NS[:, 1:] != ids_NS[:, :-1]).sum(-1) + 1}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        distinct_N, draws = Draws(vocabulary, self.draws).pack(signals["ids_NS"].numpy())
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

    def only(self, signals: Signals, known_V: "Tensor", size: int) -> Signals:
        """Return the signals for a student of only some ids; draws of the others are left out.

        What remains is an unbiased estimate of p over the ids that the student has.
        """
        ids_NK = known_V[signals["ids_NK"]]
        share_NK = signals["share_NK"].masked_fill(ids_NK < 0, 0)
        return signals | {"ids_NK": ids_NK.clamp_min(0), "share_NK": share_NK}

    def targets(self, signals: Signals, head: "Head | None") -> "SampledIds":
        """Return what a loss compares the student with."""
        from cohobate.losses.sampled import SampledIds

        ids_NK, share_NK = signals["ids_NK"], signals["share_NK"]
        return SampledIds(ids_NK, share_NK, signals["entropy_N"], self.temperature)

    def check(self, terms: Sequence[Loss]) -> None:
        """Refuse every loss that is not linear in p, and another temperature."""
        for term in terms:
            if term.type == "hard":
                continue
            drawn_at = getattr(term, "softmax_temperature", None) == self.temperature
            late = getattr(term, "tempers", "") == "outcomes" and self.temperature != 1
            if term.type != "forward_kl" or not drawn_at or late:
                raise UserError(
                    f"{term.type} has no unbiased estimate from ids drawn at temperature "
                    f"{self.temperature:g}: only forward_kl at that temperature has",
                    fix="capture.signals: {type: top_k, ...} or {type: hidden}",
                )


class StoredHidden(SignalForm):
    """The teacher's last hidden state; its head, stored once, makes the whole distribution of it.

    In bfloat16 when the teacher runs in it, which loses nothing; else in float16.
    """

    type: Literal["hidden"]
    needs_head: ClassVar[bool] = True

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return what one token takes on disk."""
        return np.dtype([("hidden", "<i2", (width,))])

    def measure(self, head: "Head", hidden_ND: "Tensor", dice_NS: "Tensor") -> Signals:
        """Return the hidden rows."""
        import torch

        kept = torch.bfloat16 if hidden_ND.dtype == torch.bfloat16 else torch.float16
        return {"hidden_ND": hidden_ND.to(kept)}

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return what is worth knowing of each token on average: nothing."""
        return {}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        import torch

        hidden_ND = signals["hidden_ND"].view(torch.int16).numpy()
        tokens = np.zeros(len(hidden_ND), self.record(vocabulary, hidden_ND.shape[1]))
        tokens["hidden"] = hidden_ND
        return Packed(tokens, np.empty(0, np.uint8))

    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the bits of the hidden rows; `targets` knows from the head what they mean."""
        import torch

        return {"hidden_ND": torch.from_numpy(packed.tokens["hidden"].astype(np.int16))}

    def only(self, signals: Signals, known_V: "Tensor", size: int) -> Signals:
        """Return the signals as they are: the head is what lacks ids (`SignalStore.head`)."""
        return signals

    def targets(self, signals: Signals, head: "Head | None") -> "LiveTeacher":
        """Return what a loss compares the student with."""
        import torch

        from cohobate.losses.targets import LiveTeacher

        assert head is not None
        kind = head.weight_VD.dtype
        as_kept = torch.bfloat16 if kind == torch.bfloat16 else torch.float16
        return LiveTeacher(signals["hidden_ND"].view(as_kept).to(kind), head)

    def check(self, terms: Sequence[Loss]) -> None:
        """Refuse nothing: it is the whole distribution."""


Form = Annotated[StoredTopK | StoredDraws | StoredHidden, Field(discriminator="type")]
"""The forms of `capture.signals`."""
