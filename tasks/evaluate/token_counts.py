"""Token counts for the cost estimate: those of the teacher's answers, and of one request."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cohobate.backends.backends import Backend
from cohobate.backends.endpoint import Endpoint
from cohobate.data.records import GENERATE, Response, Row, read_rows, write_json
from cohobate.data.tokenized import encode_all
from cohobate.generation.requests import Answer
from tasks.evaluate.cost import TOKEN_COUNTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 4096
"""Rows that are tokenized at once."""


def write_token_counts(tokenizer: "PreTrainedTokenizerBase", requests: Iterable[Row]) -> None:
    """Write data/evaluate/served.json, counted with the teacher's tokenizer.

    Args:
        tokenizer: the teacher's.
        requests: test prompts with the teacher's answers, as typical requests.
    """
    _write(_tokens(tokenizer, _taught()), _tokens(tokenizer, requests))


def write_pass_counts(
    prompt_ids: Callable[[Sequence[Row]], list[list[int]]],
    requests: Iterable[Row],
    answer_tokens: int,
) -> None:
    """Write it of a teacher that gives a whole answer, a label or a vector, in one pass.

    Args:
        prompt_ids: returns the ids that the teacher reads of rows.
        requests: test prompts.
        answer_tokens: as how many tokens an answer counts (cohobate/evaluation/timing.py).
    """
    _write(
        _passes(prompt_ids, _taught(), answer_tokens), _passes(prompt_ids, requests, answer_tokens)
    )


def write_billed_tokens(backend: Backend, requests: Sequence[Answer]) -> None:
    """Write data/evaluate/served.json as the service billed it, with its prices.

    Args:
        backend: where the teacher's answers come from.
        requests: its answers to the test prompts, as typical requests.
    """
    summaries = [json.loads(path.read_bytes()) for path in sorted(GENERATE.glob("*/summary.json"))]
    names = {"rows": "responses", "prompt_tokens": "prompt_tokens"}
    names |= {"answer_tokens": "completion_tokens"}
    taught = {
        name: sum(summary.get(key, 0) for summary in summaries) for name, key in names.items()
    }
    bought = [answer.usage for answer in requests if answer.usage]
    mean = {
        name: round(sum(getattr(usage, name) for usage in bought) / max(len(bought), 1), 4)
        for name in ("prompt_tokens", "answer_tokens")
    }
    price = backend.price if isinstance(backend, Endpoint) else None
    counts: dict[str, Any] = {"taught": taught, "request": mean}
    if price and isinstance(backend, Endpoint):
        # batch APIs charge a share of the price
        share = backend.share
        counts["price"] = {"input": price.input * share, "output": price.output * share}
    write_json(TOKEN_COUNTS, counts)


def _taught() -> Iterator[Response]:
    """Yield the answers that teachers gave."""
    paths = sorted(GENERATE.glob("*/responses.jsonl"))
    responses = (row for path in paths for row in read_rows(path, Response))
    return (row for row in responses if row.origin != "ground_truth")


def _write(taught: dict[str, int], requested: dict[str, int]) -> None:
    mean = {
        name: round(requested[name] / requested["rows"], 4) for name in requested if name != "rows"
    }
    write_json(TOKEN_COUNTS, {"taught": taught, "request": mean})


def _passes(
    prompt_ids: Callable[[Sequence[Row]], list[list[int]]], rows: Iterable[Row], answer_tokens: int
) -> dict[str, int]:
    counts = {"rows": 0, "prompt_tokens": 0, "answer_tokens": 0}
    for chunk in _chunks(rows):
        counts["rows"] += len(chunk)
        counts["prompt_tokens"] += sum(map(len, prompt_ids(chunk)))
        counts["answer_tokens"] += len(chunk) * answer_tokens
    return counts


def _tokens(tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Row]) -> dict[str, int]:
    counts = {"rows": 0, "prompt_tokens": 0, "answer_tokens": 0}
    for chunk in _chunks(rows):
        for text in encode_all(tokenizer, chunk):
            counts["rows"] += 1
            counts["prompt_tokens"] += len(text.prompt_ids)
            counts["answer_tokens"] += len(text.completion_ids)
    return counts


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
