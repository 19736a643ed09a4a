"""Masks of masked language modelling, drawn from each row's key: nothing else changes them.

Of a text's tokens a share is to be predicted; of these 80 % are replaced by the mask token, 10 % by
a random token, and 10 % stay (Devlin et al. 2019, "BERT", section 3.1). A counter-based generator
(Philox) is keyed by seed, row and copy: the order of rows, workers and resumes do not matter.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cohobate.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cohobate.data.examples import Example

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that are replaced by the mask token, and by a random token."""


class MaskedText(NamedTuple):
    """A text with masks."""

    ids: np.ndarray
    """As the model reads it, int32."""
    positions: np.ndarray
    """Of the tokens to be predicted, in ascending order; none of a text of special tokens alone."""
    labels: np.ndarray
    """These tokens as they were, int64."""


@dataclass(frozen=True)
class Masker:
    """Draws masks for texts of a tokenizer."""

    mask_id: int
    special_ids: np.ndarray
    """Tokens that are never chosen."""
    ordinary_ids: np.ndarray
    """Tokens that can stand for a chosen one."""
    share: float
    """Of a text's tokens that are to be predicted."""
    seed: int

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", share: float, seed: int) -> "Masker":
        """Return the masker of a tokenizer.

        Raises:
            UserError: it has no mask token.
        """
        if tokenizer.mask_token_id is None:
            raise UserError(
                "the tokenizer has no mask token: its model was not made to predict masked tokens",
                where="init_student.model, or a teacher of kind: masked",
                fix="model: all-minilm-l6-v2, or another BERT, RoBERTa, DistilBERT or ModernBERT",
            )
        special = np.unique(tokenizer.all_special_ids)
        ordinary = np.setdiff1d(np.fromiter(tokenizer.get_vocab().values(), int), special)
        return cls(tokenizer.mask_token_id, special, ordinary, share, seed)

    def mask(self, key: str, ids: Sequence[int], copy: int = 0) -> MaskedText:
        """Return a text with the masks of its row's key and copy.

        At least one token is chosen where there is any that is not special.
        """
        original = np.array(ids, dtype=np.int32)
        (able,) = np.nonzero(~np.isin(original, self.special_ids))
        rng = rng_of(self.seed, copy, key)
        count = min(len(able), max(1, round(self.share * len(able))))
        positions = np.sort(rng.permutation(able)[:count])
        draw, other = rng.random(count), rng.choice(self.ordinary_ids, count)
        masked = original.copy()
        keep = np.where(draw < MASKED + RANDOM, other, original[positions])
        masked[positions] = np.where(draw < MASKED, self.mask_id, keep)
        return MaskedText(masked, positions, original[positions].astype(np.int64))


def rng_of(*parts: object) -> np.random.Generator:
    """Return a random generator that these values alone decide."""
    text = "/".join(map(str, parts))
    key = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


class MaskedTargets:
    """The masked tokens of a phase's rows as they were, collated for each micro-batch."""

    def __init__(self, labels: dict[str, np.ndarray]) -> None:
        """Take the tokens of each example, by its key."""
        self._labels = labels

    def collate(self, rows: "Sequence[Example]") -> "dict[str, Tensor]":
        """Return `labels_N`, the masked tokens, and `lengths_B`, the tokens of each row."""
        import torch

        return {
            "labels_N": torch.from_numpy(np.concatenate([self._labels[row.key] for row in rows])),
            # the last token is a label alone (`MicroBatches`)
            "lengths_B": torch.tensor([len(row.ids) - 1 for row in rows]),
        }
