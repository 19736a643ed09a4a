"""The mean of several teachers' distributions over the labels, read as one store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from cohobate.data.records import Row
from cohobate.teachers.signal_store.label_store import LabelOrigin, LabelStore

if TYPE_CHECKING:
    from torch import Tensor


class MeanLabelStore:
    """Label stores of several teachers over the same prompts; distributions are their mean.

    Args:
        stores: one a teacher.
        weights: of the teachers, in any scale.
        average: `probabilities`: the weighted mean; `logits`: the normalised geometric mean.

    Raises:
        UserError: the stores are over different labels.
    """

    def __init__(
        self,
        stores: Sequence[LabelStore],
        weights: Sequence[float],
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        self.stores, self.average = stores, average
        self.folder = stores[0].folder.parent
        self._weights = np.asarray(weights) / sum(weights)
        self._places_RT = np.empty((0, len(stores)), int)
        for store in stores[1:]:
            store.check_labels(self.origin.label_set)

    @property
    def origin(self) -> LabelOrigin:
        """What the first store was captured with; its labels are those of all."""
        return self.stores[0].origin

    def places(self, rows: Sequence[Row]) -> "np.ndarray[tuple[int], np.dtype[np.int_]]":
        """Return a number for each row, for `logprobs`; −1 where a teacher has none, and says so.

        Raises:
            UserError: a teacher did not capture a prompt.
        """
        self._places_RT = np.stack([store.places(rows) for store in self.stores], axis=1)
        return np.where((self._places_RT < 0).any(1), -1, np.arange(len(rows)))

    def logprobs(self, places: Sequence[int]) -> "Tensor":
        """Return log-probabilities of the rows with these numbers, (R, C)."""
        import torch

        labels = self.origin.label_set
        logp_TRC = torch.stack(
            [
                store.logprobs(self._places_RT[list(places), number].tolist(), labels)
                for number, store in enumerate(self.stores)
            ]
        )
        weight_T11 = torch.tensor(self._weights, dtype=logp_TRC.dtype)[:, None, None]
        if self.average == "logits":
            return (weight_T11 * logp_TRC).sum(0).log_softmax(-1)
        return (weight_T11.log() + logp_TRC).logsumexp(0)
