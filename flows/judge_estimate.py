"""Estimate of money: what the judges of `evaluate` will cost, before a round starts."""

from collections.abc import Iterator
from pathlib import Path

from cohobate.backends.endpoint import Endpoint
from cohobate.backends.prices import Price, likely_tokens, most_tokens
from cohobate.data.records import TEST, Row, read_rows
from cohobate.evaluation.deciding_metric import judged_metrics
from cohobate.evaluation.judged_metrics import JudgedMetric, WinRate
from tasks.evaluate.settings import EvaluateParams

_WORDING = 160
"""Tokens of the judge's instructions, about; at most twice as many."""
_BYTES_A_TOKEN = 8
"""Of an answer, at most: the judge's tokenizer may have a token for each byte."""


def estimate_judges(evaluate: EvaluateParams, models: int, root: Path) -> Iterator[str]:
    """Yield a line on the cost of each judge behind an endpoint, on the test rows.

    Args:
        evaluate: the metrics.
        models: checkpoints that are evaluated, the teacher included.
        root: the project, whose test rows are judged.
    """
    for place, metric in evaluate.judged_metrics.items():
        for at, judged in judged_metrics(metric, place).items():
            backend = judged.judge.backend
            if not isinstance(backend, Endpoint):
                continue
            name = f"judge {judged.judge.model} of {at}"
            if backend.price is None:
                yield f"{name}: no price is set ({at}.judge.backend.price), so there is no estimate"
            elif not (root / TEST).exists():
                yield f"{name}: the cost can be estimated once the prompts are collected"
            else:
                rows = [row for row in read_rows(root / TEST, Row) if row.answer is not None]
                yield f"{name}: {_line(judged, backend.price, evaluate, rows, models)}"


def _line(
    metric: JudgedMetric, price: Price, evaluate: EvaluateParams, rows: list[Row], models: int
) -> str:
    compared, answers, orders = models, 1, 1
    if isinstance(metric, WinRate):
        # the same text twice is a tie: a model is not compared with itself
        compared, answers, orders = models - (metric.against != "reference"), 2, 2
    share = min(1.0, (metric.rows or len(rows)) / max(len(rows), 1))
    tokens = evaluate.decoding.max_tokens
    about = most = 0.0
    for row in rows:
        own = likely_tokens(row.prompt) + _WORDING + answers * tokens
        about += price.of(own, metric.judge.max_tokens)
        longest = most_tokens(row.prompt) + 2 * _WORDING + answers * tokens * _BYTES_A_TOKEN
        most += price.of(longest, metric.judge.max_tokens)
    each = compared * orders * share
    count = round(len(rows) * each)
    return f"{count} replies to buy: about {about * each:.2f} USD, at most {most * each:.2f}"
