"""Token counts for the cost estimate: those of the teacher's answers, and of one request."""

import json
from collections.abc import Iterable, Iterator, Sequence
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
    paths = sorted(GENERATE.glob("*/responses.jsonl"))
    responses = (row for path in paths for row in read_rows(path, Response))
    taught = _tokens(tokenizer, (row for row in responses if row.origin != "ground_truth"))
    requested = _tokens(tokenizer, requests)
    mean = {
        name: round(requested[name] / requested["rows"], 4) for name in requested if name != "rows"
    }
    write_json(TOKEN_COUNTS, {"taught": taught, "request": mean})


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


def _tokens(tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Row]) -> dict[str, Any]:
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
