"""Forgetting: the loss on general text before and after training.

The packaged text, `general.txt`, is the openings of works long in the public domain
(Carroll 1865, Austen 1813, Melville 1851, Darwin 1859, Lincoln 1863, the Constitution of the United
States 1787, Doyle 1891, Smith 1776), a paragraph each. No licence is needed: all of it was
published before 1900, by authors who died in 1930 at the latest, or by a government. Every model
has seen these texts in pretraining: compare models, not absolute losses. They are few: small
differences are noise.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.params import Section

if TYPE_CHECKING:
    from cohobate.evaluation.answer_logprobs import AnswerLogprobs

PACKAGED = Path(__file__).with_name("general.txt")


class Forgetting(Section):
    """The general text, and the loss on it."""

    texts: tuple[str, ...] = ()
    """Passages of a few sentences each; empty: the packaged ones."""

    def passages(self) -> list[str]:
        """Return the passages."""
        return list(self.texts) or PACKAGED.read_text(encoding="utf-8").strip().split("\n\n")

    def measure(self, logprobs: "AnswerLogprobs", passages: Sequence[str]) -> dict[str, Any]:
        """Return a model's loss on each passage, in bits per byte.

        Bits per byte are comparable between tokenizers.
        """
        from math import log

        from cohobate.data.tokenized import Encoded
        from cohobate.models.layers import learned_positions

        ids = [list(passage_ids) for passage_ids in logprobs.tokenizer(list(passages)).input_ids]
        # the first token has no loss; a passage beyond the model's positions is cut into pieces
        limit = learned_positions(logprobs.model) or 1 << 62
        # pieces overlap by a token: the last of one is the context of the next
        starts = [range(0, max(1, len(one) - 1), limit - 1) for one in ids]
        texts = [
            [Encoded.of(one[at : at + 1], one[at + 1 : at + limit]) for at in positions]
            for one, positions in zip(ids, starts, strict=True)
        ]
        logprobs.compute([text for pieces in texts for text in pieces])
        losses, tokens = [], 0
        for passage, pieces in zip(passages, texts, strict=True):
            nats = -float(logprobs.answer_log_probs(pieces).sum())
            losses.append(round(nats / log(2) / len(passage.encode()), 6))
            tokens += sum(len(text.completion_ids) for text in pieces)
        return {
            "bits_per_byte": round(sum(losses) / len(losses), 6),
            "by_passage": losses,
            "tokens": tokens,
        }
