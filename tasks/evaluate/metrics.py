"""How good the answers are. A model's score is the mean over the test rows.

Most metrics look at one answer and score it from 0 to 1 (`score`). Some need the model itself, to
read the reference answers of a sample of rows (`measure`): they are reported, and decide nothing.

To add a metric: a class with `score` or `measure`, and its name in `Metric` at the bottom.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import exp
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from tasks.judging.verifiers import Verifier
from tasks.params import Section

if TYPE_CHECKING:
    from tasks.evaluate.readings import Reader
    from tasks.rows.records import Row
    from tasks.rows.text import Encoded


@runtime_checkable
class AnswerMetric(Protocol):
    """Looks at one answer."""

    @property
    def type(self) -> str:
        """Name of the metric."""

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer, from 0 to 1."""


@runtime_checkable
class ReadingMetric(Protocol):
    """Has the model read reference answers."""

    @property
    def type(self) -> str:
        """Name of the metric."""

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return a figure of the model on some rows; None where there is none for this task."""


class Verified(Section):
    """1 where the task's verifier calls the answer right, else 0: accuracy."""

    type: Literal["verifier"] = "verifier"

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(verifier.correct(answer, reference))


class ExactMatch(Section):
    """1 where the answer is the reference to the letter, white space at the ends aside."""

    type: Literal["exact_match"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(answer.strip() == reference.strip())


class TokenF1(Section):
    """Harmonic mean of precision and recall over words, as SQuAD's script has it: without case,
    punctuation and articles (Rajpurkar et al. 2016)."""

    type: Literal["token_f1"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer; two empty texts agree."""
        given, wanted = Counter(_squad_words(answer)), Counter(_squad_words(reference))
        if not given or not wanted:
            return float(given == wanted)
        shared = (given & wanted).total()
        return 2 * shared / (given.total() + wanted.total())


class RougeL(Section):
    """F-measure of the longest common subsequence of words (Lin 2004), by `rouge-score`."""

    type: Literal["rouge_l"]
    stemmer: bool = False
    """Whether English words are compared by their stems."""

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        found = _rouge(self.stemmer).score(reference, answer)
        return float(found["rougeL"].fmeasure)


class Bleu(Section):
    """Sentence BLEU (Papineni et al. 2002) by `sacrebleu`; orders that a short answer cannot have
    are left out, the others smoothed. The mean over rows is no corpus BLEU."""

    type: Literal["bleu"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(_sacrebleu("BLEU").sentence_score(answer, [reference]).score) / 100


class ChrF(Section):
    """F-score of character n-grams (Popović 2015), a sentence at a time, by `sacrebleu`."""

    type: Literal["chrf"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return float(_sacrebleu("CHRF").sentence_score(answer, [reference]).score) / 100


class LabelAccuracy(Section):
    """Share of rows whose own label the model finds the likeliest, of all labels: what it knows,
    whether or not it would say so.

    Labels are told apart by their first token; where two begin alike there is no figure.
    """

    type: Literal["label_accuracy"]

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return the share; None where the task has no closed set of labels."""
        if task.type != "label":
            return None
        labels = {row.answer: text.completion_ids[0] for row, text in zip(rows, texts, strict=True)}
        ids = sorted(set(labels.values()))
        if len(ids) < len(labels):
            return None
        best = reader.first_log_probs(texts, ids).argmax(-1).tolist()
        right = [bool(ids[n] == labels[row.answer]) for n, row in zip(best, rows, strict=True)]
        return sum(right) / len(right)


class Perplexity(Section):
    """exp of the mean surprise at the tokens of the reference answer, its end included. 1 is
    certainty; models with different tokenizers are not comparable."""

    type: Literal["perplexity"]

    def measure(
        self, reader: "Reader", rows: Sequence["Row"], texts: Sequence["Encoded"], task: Verifier
    ) -> float | None:
        """Return the perplexity, no more than a million."""
        mean = float(reader.answer_log_probs(texts).mean())
        return min(exp(min(-mean, 20.0)), 1e6)


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

    return metrics.BLEU(effective_order=True) if name == "BLEU" else metrics.CHRF()


Metric = Annotated[
    Verified | ExactMatch | TokenF1 | RougeL | Bleu | ChrF | LabelAccuracy | Perplexity,
    Field(discriminator="type"),
]
