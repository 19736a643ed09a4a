"""How many tokens were asked of the teacher for this round, and how many a request takes."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from tasks.evaluate.cost import SERVED
from tasks.rows.records import GENERATE, Response, Row, read_rows, write_json
from tasks.rows.text import encode_all

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
