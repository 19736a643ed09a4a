"""Word replacement: more training texts, in which some words stand for others like them.

As TinyBERT's data augmentation (Jiao et al. 2020, section 3, algorithm 1), with the nearest word
embeddings of an encoder for every word. Which words change depends on seed, row and copy alone.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from cohobate.params import Section
from cohobate.progress import say
from cohobate.training.masking import rng_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cohobate.data.examples import Example

_BATCH = 1024
_MARKS = ("Ġ", "▁")  # begin a word in vocabularies that do not mark continuations by ##


class WordReplacement(Section):
    """Copies of each row with words replaced."""

    copies: int = Field(4, ge=1)
    """Copies of a row beside the row itself."""
    share: float = Field(0.4, gt=0, le=1)
    """Probability with which a word of a copy is replaced. Words of several tokens stay."""
    nearest: int = Field(15, ge=1)
    """A word becomes one of so many whose embeddings have the highest cosines with its own."""

    def augmented(
        self,
        examples: "Sequence[Example]",
        table_VD: "Tensor",
        tokenizer: "PreTrainedTokenizerBase",
        seed: int,
    ) -> "list[Example]":
        """Return the examples, each with its copies behind it; a copy without a change is none.

        Args:
            examples: texts as token ids, with a token more that stands for the label.
            table_VD: word embeddings over the tokenizer's vocabulary.
            tokenizer: of the examples.
            seed: of the phase.
        """
        words = _Words(tokenizer)
        places = [words.places(example.ids[:-1]) for example in examples]
        pairs = zip(examples, places, strict=True)
        used = np.unique(np.concatenate([one.ids[at] for one, at in pairs]))
        if not len(used) or words.whole.sum() < 2:
            say("no text has a word of one token: no words are replaced")
            return [*examples]
        nearest = self._nearest(used, table_VD, words)
        result = []
        for example, at in zip(examples, places, strict=True):
            result.append(example)
            for copy in range(self.copies):
                rng = rng_of(seed, f"replaced {copy}", example.key)
                chosen = at[rng.random(len(at)) < self.share]
                if not len(chosen):
                    continue
                ids = example.ids.copy()
                options = nearest[np.searchsorted(used, ids[chosen])]
                ids[chosen] = options[
                    np.arange(len(chosen)), rng.integers(options.shape[1], size=len(chosen))
                ]
                result.append(replace(example, key=f"{example.key}/words-{copy}", ids=ids))
        return result

    def _nearest(self, used: np.ndarray, table_VD: "Tensor", words: "_Words") -> np.ndarray:
        """Return the ids of the words nearest to each used one, (used, nearest)."""
        import torch
        from torch.nn import functional as F

        able = torch.from_numpy(np.flatnonzero(words.whole))
        unit_VD = F.normalize(table_VD.detach().float().cpu(), dim=-1)
        candidates_KD = unit_VD[able]
        count = min(self.nearest, len(able) - 1)
        parts = []
        for start in range(0, len(used), _BATCH):
            own = torch.from_numpy(used[start : start + _BATCH].astype(np.int64))
            cosines = unit_VD[own] @ candidates_KD.T
            # a word is not its own replacement
            cosines[own[:, None] == able[None]] = -2.0
            parts.append(able[cosines.topk(count, dim=-1).indices])
        return torch.cat(parts).numpy().astype(np.int32)


class _Words:
    """Which tokens of a vocabulary are whole words."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        texts = [""] * size
        for token, number in vocabulary.items():
            texts[number] = token
        by_hashes = any(text.startswith("##") for text in texts)
        special = {*tokenizer.all_special_tokens}
        self.whole = np.zeros(size, dtype=bool)
        """Tokens that begin a word, of letters alone, more than one."""
        self.continues = np.zeros(size, dtype=bool)
        """Tokens that go on with the word before them."""
        for number, text in enumerate(texts):
            if by_hashes:
                starts, letters = not text.startswith("##"), text
            else:
                starts, letters = text.startswith(_MARKS), text[1:]
            self.whole[number] = starts and letters.isalpha() and len(letters) > 1
            goes_on = text.removeprefix("##") if by_hashes else text
            self.continues[number] = not starts and goes_on.isalpha() and text not in special

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Return where a text has words of one token."""
        ends = np.append(~self.continues[ids[1:]], True) if len(ids) else np.zeros(0, dtype=bool)
        places: np.ndarray = np.flatnonzero(self.whole[ids] & ends)
        return places
