"""What the cost of a round is reckoned from, of a teacher that answers in one pass."""

import json
from pathlib import Path

from cohobate.data.records import GENERATE, Response, Row, row_id, write_rows
from tasks.evaluate.cost import TOKEN_COUNTS
from tasks.evaluate.token_counts import write_pass_counts


def test_an_answer_of_one_pass_counts_as_the_tokens_that_are_timed(project: Path) -> None:
    rows = [Row(id=row_id(p), prompt=p, answer="x") for p in ("ab", "abcd", "abcdef")]
    taught = [
        Response(**row.model_dump() | {"origin": origin}, teacher="main", finish="stop")
        for row, origin in zip(rows, ("teacher", "teacher", "ground_truth"), strict=True)
    ]
    write_rows(GENERATE / "main/responses.jsonl", taught)
    write_pass_counts(lambda rows: [[1] * len(str(row.prompt)) for row in rows], rows, 2)
    assert json.loads(TOKEN_COUNTS.read_bytes()) == {
        "taught": {"rows": 2, "prompt_tokens": 6, "answer_tokens": 4},
        "request": {"prompt_tokens": 4.0, "answer_tokens": 2.0},
    }
