"""How many tokens were asked of the teacher for this round, and how many a request takes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from cohobate.backends.backends import Backend
from cohobate.backends.endpoint import Endpoint
from cohobate.data.records import GENERATE, Response, Row, read_rows, write_json
from cohobate.data.tokenized import encode_all
from cohobate.generation.requests import Answer
from tasks.evaluate.cost import SERVED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AT_ONCE = 4096


def write_served(tokenizer: "PreTrainedTokenizerBase", requests: Iterable[Row]) -> None:
    """Write data/evaluate/served.json, counted in the teacher's tokens.

    Args:
        tokenizer: the teacher's.
        requests: test prompts with the teacher's answers: what serving is like.
    """
    paths = sorted(GENERATE.glob("*/responses.jsonl"))
    taught = _tokens(tokenizer, (row for path in paths for row in read_rows(path, Response)))
    asked = _tokens(tokenizer, requests)
    mean = {name: round(asked[name] / asked["rows"], 4) for name in asked if name != "rows"}
    write_json(SERVED, {"taught": taught, "request": mean})


def write_bought(backend: Backend, requests: Sequence[Answer]) -> None:
    """Write data/evaluate/served.json as a service counted, with its prices.

    Args:
        backend: where the teacher's answers come from.
        requests: its answers to the test prompts: what serving is like.
    """
    told = [json.loads(path.read_bytes()) for path in sorted(GENERATE.glob("*/summary.json"))]
    names = {"rows": "responses", "prompt_tokens": "prompt_tokens"}
    names |= {"answer_tokens": "completion_tokens"}
    taught = {name: sum(one.get(key, 0) for one in told) for name, key in names.items()}
    bought = [answer.usage for answer in requests if answer.usage]
    mean = {
        name: round(sum(getattr(one, name) for one in bought) / max(len(bought), 1), 4)
        for name in ("prompt_tokens", "answer_tokens")
    }
    price = backend.price if isinstance(backend, Endpoint) else None
    found: dict[str, Any] = {"taught": taught, "request": mean}
    if price and isinstance(backend, Endpoint):
        share = backend.share
        found["price"] = {"input": price.input * share, "output": price.output * share}
    write_json(SERVED, found)


def _tokens(tokenizer: "PreTrainedTokenizerBase", rows: Iterable[Row]) -> dict[str, Any]:
    found = {"rows": 0, "prompt_tokens": 0, "answer_tokens": 0}
    for chunk in _chunks(rows):
        for text in encode_all(tokenizer, chunk):
            found["rows"] += 1
            found["prompt_tokens"] += len(text.prompt_ids)
            found["answer_tokens"] += len(text.completion_ids)
    return found


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while chunk := list(islice(left, _AT_ONCE)):
        yield chunk
