"""Metrics of an answer against a reference, from 0 to 1, and metrics of a text's likelihood.

The first metric of `evaluate.metrics` decides which student is better, which seed is exported, and
what an exported form may lose (cohobate/evaluation/deciding_metric.py). Figures of all answers
together, such as macro-F1, are in answer_figures.py; metrics by a judge in
cohobate/evaluation/judged_metrics.py.

To add a metric: a class with `score`, and its name in `AnswerMetric` at the bottom; one of a
likelihood has `size` and `figure`, and its name in `LikelihoodMetric`.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from math import exp, log, log2
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, JsonValue, model_validator

from cohobate.data.records import Row
from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError
from cohobate.params import Section
from cohobate.scoring.rankings import rank_of
from cohobate.scoring.verifiers import Task, Verifier

if TYPE_CHECKING:
    from torch import Tensor


class TaskMetric(Section):
    """Base class of the metrics."""

    tasks: tuple[str, ...] = ()
    """Sources whose rows are scored, of `collect.sources`; all rows where none is named."""

    def scores_task(self, task: str | None) -> bool:
        """Return whether the rows of a task are scored."""
        return not self.tasks or task in self.tasks


class AnswerScore(TaskMetric):
    """Base class of the metrics that score one answer."""

    type: str

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer, from 0 to 1."""
        raise NotImplementedError

    def score_row(self, row: Row, answer: str, task: Task) -> float:
        """Score one answer to a row."""
        return self.score(answer, row.full_answer, task.verifier_of(row.task))


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


class Rouge(AnswerScore):
    """F-measure of words in common (Lin 2004), by `rouge-score`: of single words (`rouge_1`), of
    pairs (`rouge_2`), or of the longest common subsequence (`rouge_l`)."""

    type: Literal["rouge_1", "rouge_2", "rouge_l"]
    stemmer: bool = False
    """Whether English words are stemmed."""

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        return self.f_measure(answer, reference)

    def f_measure(self, text: str, other: str) -> float:
        """Return the F-measure of two texts; it is the same either way round."""
        name = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}[self.type]
        return float(_rouge(name, self.stemmer).score(other, text)[name].fmeasure)


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


class Format(AnswerScore):
    """1 where the whole answer has a form: a regular expression, or JSON of a schema."""

    type: Literal["format"]
    regex: str = ""
    """Matches the whole answer, without white space at its ends."""
    json_schema: dict[str, JsonValue] | None = None
    """JSON Schema (draft 2020-12) of an answer that is JSON; `{}` is any JSON. A fence around it is
    no JSON."""

    @model_validator(mode="after")
    def _has_one_form(self) -> "Format":
        if bool(self.regex) == (self.json_schema is not None):
            raise ValueError("give either regex or json_schema")
        try:
            if self.json_schema is None:
                re.compile(self.regex)
            else:
                _schema(self.json_schema).check_schema(self.json_schema)
        except re.error as error:
            raise ValueError(f"regex: not a regular expression: {error}") from None
        except Exception as error:  # of jsonschema, which is imported where it is needed
            raise ValueError(f"json_schema: {next(iter(str(error).splitlines()), '')}") from None
        return self

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one answer."""
        if self.json_schema is None:
            return float(re.fullmatch(self.regex, answer.strip()) is not None)
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return float(_schema(self.json_schema).is_valid(value))


class NDCG(AnswerScore):
    """nDCG@10 of a ranking with one relevant document (Järvelin & Kekäläinen 2002).

    1 / log2(1 + rank) of the reference among the first ten documents; 0 where it is none of them.
    """

    type: Literal["ndcg"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one ranking, a document a line."""
        rank = rank_of(reference, answer)
        return 1 / log2(1 + rank) if rank else 0.0


class MRR(AnswerScore):
    """Reciprocal rank of the reference among the first ten documents; 0 where it is none."""

    type: Literal["mrr"]

    def score(self, answer: str, reference: str, verifier: Verifier) -> float:
        """Score one ranking, a document a line."""
        rank = rank_of(reference, answer)
        return 1 / rank if rank else 0.0


class TokenLogprobs(Protocol):
    """Log-probabilities of the tokens of reference answers."""

    def answer_log_probs(self, texts: Sequence[Encoded]) -> "Tensor":
        """Return the log-probability of each answer token, in nats."""


class LikelihoodScore(TaskMetric):
    """Base class of the metrics of the likelihood of reference answers, or of raw text.

    Lower is better. Where one decides, a gain is the share by which it is lower, and retention is
    the teacher's figure over the student's.
    """

    type: str
    exponential: ClassVar[bool]
    """Whether the figure is exp of the mean loss, so that a ratio is a difference of losses."""

    def size(self, text: str, tokens: int) -> int:
        """Return what the loss of a text is divided by."""
        raise NotImplementedError

    def figure(self, loss: float) -> float:
        """Return the figure of a mean loss, in nats for each unit of `size`."""
        raise NotImplementedError

    def measure(
        self, logprobs: TokenLogprobs, rows: Sequence[Row], texts: Sequence[Encoded], task: Task
    ) -> float:
        """Return the figure on `rows`, encoded as `texts`."""
        nats = -logprobs.answer_log_probs(texts).sum()
        pairs = zip(rows, texts, strict=True)
        size = sum(self.size(row.answer or "", len(text.completion_ids)) for row, text in pairs)
        return self.figure(float(nats) / size)


class Perplexity(LikelihoodScore):
    """exp of the mean loss on the tokens of the reference answers, end tokens included.

    Models with different tokenizers are not comparable.
    """

    type: Literal["perplexity"]
    exponential: ClassVar[bool] = True

    def size(self, text: str, tokens: int) -> int:
        """Return the number of tokens."""
        return tokens

    def figure(self, loss: float) -> float:
        """Return the perplexity, at most a million."""
        # exp(20) is above the limit: a broken model gives no overflow
        return min(exp(min(loss, 20.0)), 1e6)

    def measure(
        self, logprobs: TokenLogprobs, rows: Sequence[Row], texts: Sequence[Encoded], task: Task
    ) -> float:
        """Return the perplexity on `rows`, encoded as `texts`."""
        return self.figure(-float(logprobs.answer_log_probs(texts).mean()))


class BitsPerByte(LikelihoodScore):
    """Loss on the reference answers in bits for each byte of their UTF-8 text.

    Models with different tokenizers are comparable.
    """

    type: Literal["bits_per_byte"]
    exponential: ClassVar[bool] = False

    def size(self, text: str, tokens: int) -> int:
        """Return the number of bytes; 1 of an empty text, whose end token has a loss."""
        return len(text.encode()) or 1

    def figure(self, loss: float) -> float:
        """Return the bits."""
        return loss / log(2)


def refuse_raw_text(rows: Sequence[Row], metric: str, part: str) -> None:
    """Refuse to score answers to raw text, which has none.

    Args:
        rows: the rows to score.
        metric: the metric's name.
        part: the rows' part of the data, such as `dev`.

    Raises:
        UserError: a row is raw text.
    """
    if raw := sum(row.is_raw_text for row in rows):
        raise UserError(
            f"{raw} {part} rows are raw text, which has no answer that {metric} could score",
            where="params.yaml, evaluate.metrics",
            fix="cohobate run --set 'evaluate.metrics=[{type: perplexity}]'",
        )


def _squad_words(text: str) -> list[str]:
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


@cache
def _rouge(name: str, stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=stemmer)


def _schema(schema: Mapping[str, Any]) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema)


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu import metrics

    # short answers have no 4-grams: effective order leaves out what they cannot have
    return metrics.BLEU(effective_order=True) if name == "BLEU" else metrics.CHRF()


AnswerMetric = Annotated[
    VerifierAccuracy | ExactMatch | TokenF1 | Rouge | Bleu | ChrF | Format | NDCG | MRR,
    Field(discriminator="type"),
]

LikelihoodMetric = Perplexity | BitsPerByte
