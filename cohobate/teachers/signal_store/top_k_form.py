"""The form `top_k`: the most likely ids of each token, and one number for all others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field

from cohobate.errors import UserError
from cohobate.teachers.signal_store import packing
from cohobate.teachers.signal_store.form import LossTerm, Packed, SignalForm, Signals
from cohobate.teachers.signal_store.packing import IdSets

if TYPE_CHECKING:
    from torch import Tensor

    from cohobate.losses.top_k import TopK
    from cohobate.models.lm_head import Head


class StoredTopK(SignalForm):
    """The K most likely ids with their log-probabilities, and one number for all others."""

    type: Literal["top_k"]
    k: int = Field(32, ge=1)
    """K: ids stored for each token; the mass of all others is one number a temperature."""
    temperatures: tuple[float, ...] = (1.0,)
    """Temperatures at which losses over the whole vocabulary can use them."""

    def for_vocabulary(self, size: int) -> Self:
        """Return the form with no more ids than there are."""
        return self.model_copy(update={"k": min(self.k, size)})

    def record(self, vocabulary: int, width: int) -> np.dtype[Any]:
        """Return the dtype of one token's record on disk."""
        ids = IdSets.of(vocabulary, self.k)
        arrays = [("ids", "u1", (ids.size,)), ("codes", "u1", (self.k,))]
        numbers = [
            ("top", "<f2"),
            ("widest", "<f2"),
            ("rest_logprob", "<f2", (len(self.temperatures),)),
        ]  # names of fields are not on disk: those of the index are
        return np.dtype([*arrays, *numbers])  # type: ignore[list-item]

    def measure(self, head: "Head", hidden_ND: "Tensor", uniform_NU: "Tensor") -> Signals:
        """Return the most likely ids, their log p, and log Σ p^(1/T) over all others."""
        return self.measure_logits(head.logits(hidden_ND))

    def measure_logits(self, logits_NV: "Tensor") -> Signals:
        """Return the same from the logits, which are overwritten."""
        import torch

        highest_NK, ids_NK = logits_NV.topk(self.k, -1)
        max_N1 = highest_NK[:, :1]
        # the logits are overwritten: one pass of exp over V serves every temperature
        others_NV = logits_NV.sub_(max_N1).exp_().scatter_(-1, ids_NK, 0)
        highest_NK = highest_NK - max_N1
        total_N1 = others_NV.sum(-1, keepdim=True) + highest_NK.exp().sum(-1, keepdim=True)
        log_total_N1 = total_N1.log()
        # with e = exp(logit − max), p^(1/T) is e^(1/T) / total^(1/T)
        rest = [
            (others_NV if t == 1 else others_NV.pow(1 / t)).sum(-1).log() - log_total_N1[:, 0] / t
            for t in self.temperatures
        ]
        return self.signals(ids_NK, highest_NK - log_total_N1, torch.stack(rest, -1))

    def signals(self, ids_NK: "Tensor", logp_NK: "Tensor", rest_logprob_NQ: "Tensor") -> Signals:
        """Return the signals of N tokens, whoever computed the numbers.

        Args:
            ids_NK: K different ids of each token.
            logp_NK: their log-probabilities.
            rest_logprob_NQ: log Σ p^(1/T) over all other ids, for each of the form's temperatures.
        """
        return {
            "logp_NK": logp_NK.clamp_min(packing.SMALLEST),
            "rest_logprob_NQ": rest_logprob_NQ.clamp_min(packing.SMALLEST),
            "ids_NK": ids_NK,
        }

    def serves(self, other: SignalForm) -> bool:
        """Say whether these signals contain those of another form: its ids and temperatures."""
        return (
            isinstance(other, StoredTopK)
            and self.k >= other.k
            and set(self.temperatures) >= set(other.temperatures)
        )

    def narrow(self, signals: Signals, other: SignalForm) -> Signals:
        """Return the likeliest of the ids alone; the mass of the others joins the rest."""
        import torch

        from cohobate.teachers.signal_store.buckets import with_mass_of

        assert isinstance(other, StoredTopK)
        columns = [self.temperatures.index(t) for t in other.temperatures]
        rest_NQ = signals["rest_logprob_NQ"][:, columns]
        # stable: of ids with one log-probability the lower ones stay, in every batch
        order_NK = signals["logp_NK"].argsort(dim=1, descending=True, stable=True)
        kept_NK, dropped_NK = order_NK[:, : other.k], order_NK[:, other.k :]
        if dropped_NK.shape[1]:
            dropped = torch.ones_like(signals["ids_NK"], dtype=torch.bool)
            dropped.scatter_(1, kept_NK, False)
            rest_NQ = with_mass_of(dropped, signals["logp_NK"], rest_NQ, other.temperatures)
        ids_NK, logp_NK = (signals[name].gather(1, kept_NK) for name in ("ids_NK", "logp_NK"))
        return other.signals(ids_NK, logp_NK, rest_NQ)

    def figures(self, signals: Signals) -> dict[str, "Tensor"]:
        """Return the mass of the K ids, whose mean is reported."""
        return {"mean_mass_of_top_k": signals["logp_NK"].exp().sum(-1)}

    def pack(self, signals: Signals, vocabulary: int) -> Packed:
        """Return the bytes of some tokens."""
        ids_NK, logp_NK = signals["ids_NK"].numpy(), signals["logp_NK"].numpy()
        # `IdSets` packs ids that rise; each log p goes with its id
        order_NK = ids_NK.argsort(1)
        ids_NK, logp_NK = (np.take_along_axis(x, order_NK, 1) for x in (ids_NK, logp_NK))
        tokens = np.zeros(len(ids_NK), self.record(vocabulary, 0))
        tokens["ids"] = IdSets.of(vocabulary, self.k).pack(ids_NK)
        tokens["top"], tokens["widest"], tokens["codes"] = packing.pack_gaps(logp_NK)
        tokens["rest_logprob"] = signals["rest_logprob_NQ"].numpy()
        return Packed(tokens, np.empty(0, np.uint8))

    def unpack(self, packed: Packed, vocabulary: int) -> Signals:
        """Return the tensors of some tokens; the ids of a token rise."""
        import torch

        tokens = packed.tokens
        logp_NK = packing.unpack_gaps(tokens["top"], tokens["widest"], tokens["codes"])
        return {
            "ids_NK": torch.from_numpy(IdSets.of(vocabulary, self.k).unpack(tokens["ids"])),
            "logp_NK": torch.from_numpy(logp_NK),
            "rest_logprob_NQ": torch.from_numpy(tokens["rest_logprob"].astype(np.float32)),
        }

    def restrict(self, signals: Signals, student_ids_V: "Tensor", size: int) -> Signals:
        """Return the signals for a student of only `size` of the ids.

        The mass of stored ids that the student lacks joins the bucket of all others. Their places
        are taken by ids out of that bucket, each with an even share of its mass.
        """
        import torch

        from cohobate.teachers.signal_store.buckets import unused_ids, with_mass_of

        ids_NK, logp_NK = student_ids_V[signals["ids_NK"]], signals["logp_NK"]
        lacks_NK = ids_NK < 0
        if not lacks_NK.any():
            return signals | {"ids_NK": ids_NK}
        k = ids_NK.shape[1]
        # `unused_ids` looks among the 2 K rarest: K of them are free in any case
        if size < 2 * k:
            raise UserError(
                f"signals of {k} ids a token need a student of {2 * k} ids, this one has {size}",
                fix="lower capture.signals.k, or keep more of the vocabulary",
            )
        rest_NQ = with_mass_of(lacks_NK, logp_NK, signals["rest_logprob_NQ"], self.temperatures)
        # an even share of the bucket at T = 1, where there is one: next to nothing for each id
        one = self.temperatures.index(1.0) if 1.0 in self.temperatures else 0
        even_N1 = rest_NQ[:, one, None] - float(np.log(size))
        return {
            "ids_NK": torch.where(lacks_NK, unused_ids(ids_NK, lacks_NK, size), ids_NK),
            "logp_NK": torch.where(lacks_NK, even_N1, logp_NK),
            "rest_logprob_NQ": rest_NQ,
        }

    def targets(self, signals: Signals, head: "Head | None") -> "TopK":
        """Return the soft targets of a loss."""
        from cohobate.losses.top_k import TopK

        ids_NK, logp_NK = signals["ids_NK"], signals["logp_NK"]
        return TopK(ids_NK, logp_NK, signals["rest_logprob_NQ"], self.temperatures)

    def check(self, terms: Sequence[LossTerm]) -> None:
        """Check that the mass of the rest was stored at every term's temperature."""
        for term in terms:
            temperature = getattr(term, "softmax_temperature", None)
            if temperature is not None and temperature not in self.temperatures:
                stored = ", ".join(f"{t:g}" for t in self.temperatures)
                raise UserError(
                    f"{term.type} at temperature {temperature:g}: the stored signals have the mass "
                    f"of the other ids at {stored} only",
                    fix=f"add {temperature:g} to capture.signals.temperatures, or "
                    "`tempers: outcomes`",
                )
