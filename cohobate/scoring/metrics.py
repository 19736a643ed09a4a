"""Metrics of an answer against a reference: scores from 0 to 1.

The first metric of `evaluate.metrics` decides which student is better, which seed is exported, and
what an exported form may lose. Stages that compare answers read it as `DecidingMetric`.

To add a metric: a class with `score`, and its name in `AnswerMetric` at the bottom.
"""

import re
import string
from collections import Counter
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field

from cohobate.params import Section, ValueOf
from cohobate.scoring.verifiers import Verifier


class AnswerScore(Section):
    """Base class of the metrics that score one answer."""

    type: str

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer, from 0 to 1."""
        raise NotImplementedError


class VerifierAccuracy(AnswerScore):
    """Accuracy: 1 where the task's verifier accepts the answer, else 0."""

    type: Literal["verifier"] = "verifier"

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(verifier.correct(answer, reference))


class ExactMatch(AnswerScore):
    """1 where the answer equals the reference, apart from white space at the ends."""

    type: Literal["exact_match"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(answer.strip() == reference.strip())


class TokenF1(AnswerScore):
    """F1 over words as in SQuAD's script (Rajpurkar et al. 2016): case, punctuation and articles
    do not count."""

    type: Literal["token_f1"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer; two empty texts agree."""
        words, expected = Counter(_squad_words(answer)), Counter(_squad_words(reference))
        if not words or not expected:
            return float(words == expected)
        shared = (words & expected).total()
        # 2 P R / (P + R), with P = shared / words and R = shared / expected
        return 2 * shared / (words.total() + expected.total())


class RougeL(AnswerScore):
    """F-measure of the longest common subsequence of words (Lin 2004), by `rouge-score`."""

    type: Literal["rouge_l"]
    stemmer: bool = False
    """Whether English words are stemmed."""

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        scores = _rouge(self.stemmer).score(reference, answer)
        return float(scores["rougeL"].fmeasure)


class Bleu(AnswerScore):
    """Sentence BLEU (Papineni et al. 2002) by `sacrebleu`, with effective order and smoothing.

    The mean over rows is not corpus BLEU.
    """

    type: Literal["bleu"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(_sacrebleu("BLEU").sentence_score(answer, [reference]).score) / 100


class ChrF(AnswerScore):
    """Sentence chrF, the F-score of character n-grams (Popović 2015), by `sacrebleu`."""

    type: Literal["chrf"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(_sacrebleu("CHRF").sentence_score(answer, [reference]).score) / 100


def _squad_words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@cache
def _rouge(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmer)


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu import metrics

    # short answers have no 4-grams: effective order leaves out what they cannot have
    return metrics.BLEU(effective_order=True) if name == "BLEU" else metrics.CHRF()


AnswerMetric = Annotated[
    VerifierAccuracy | ExactMatch | TokenF1 | RougeL | Bleu | ChrF, Field(discriminator="type")
]

DecidingMetric = Annotated[AnswerMetric, ValueOf("evaluate.metrics.0")]
"""The first metric of `evaluate.metrics`, as a parameter of a stage's function."""
