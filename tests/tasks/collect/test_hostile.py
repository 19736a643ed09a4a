"""A thousand hostile records among good ones: each is kept or set aside, and nothing crashes."""

import json
import random
from collections import Counter
from pathlib import Path

from cohobate.data.records import COLLECT, DEV, LABELLED, TEST, UNLABELLED, Row, read_rows
from cohobate.params import validated
from tasks.collect.stage import CollectParams, run

GOOD = 400
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
KINDS = {
    "no JSON": lambda rng: b'{"prompt": "a' + rng.choice([b"", b'"', b'",', b"}"]),
    "bytes": lambda rng: rng.randbytes(rng.randint(1, 60)).replace(b"\n", b"x"),
    "no UTF-8": lambda rng: b'{"prompt": "\xff\xfe' + rng.randbytes(3).hex().encode() + b'"}',
    "null": lambda rng: json.dumps({"prompt": None, "completion": rng.random()}).encode(),
    "all null": lambda rng: b'{"messages": null, "prompt": null, "text": null}',
    "NaN": lambda rng: b'{"prompt": "' + str(rng.random()).encode() + b'", "completion": NaN}',
    "infinity": lambda rng: b'{"prompt": -Infinity}',
    "huge number": lambda rng: b'{"prompt": 1' + b"0" * 6000 + b"}",
    "wrong role": lambda rng: json.dumps(
        {"messages": [{"role": rng.choice(["tool", "", 7, None]), "content": "x"}]}
    ).encode(),
    "no turn": lambda rng: json.dumps(
        {"messages": rng.choice([[], "hi", {}, [7], [None], [TURNS], [TURNS[1]]])}
    ).encode(),
    "deep": lambda rng: b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "deep object": lambda rng: b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "key twice": lambda rng: b'{"prompt": "a", "prompt": "b"}',
    "surrogate": lambda rng: b'{"prompt": "half \\ud800", "completion": "x"}',
    "no object": lambda rng: rng.choice([b"[]", b"7", b'"text"', b"null", b"true", b"[{}]"]),
    "empty": lambda rng: b'{"prompt": "  ", "completion": ""}',
    "no columns": lambda rng: json.dumps({"question": rng.random()}).encode(),
    "zero byte": lambda rng: b'{"prompt": "a\x00b"}',
    "types": lambda rng: json.dumps(
        {"prompt": rng.choice([{}, [], [1], True]), "completion": rng.choice([{}, []])}
    ).encode(),
    "other line ends": lambda rng: b'{"prompt": "a"}\r{"prompt": "b"}\x0b\x0c\x85',
}
LONG = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'


def hostile() -> list[bytes]:
    """1,000 records: fifty of each kind, the longest twice."""
    rng = random.Random(0)
    records = [make(rng) for make in KINDS.values() for _ in range(50)]
    return [*records[2:], LONG, LONG]


def test_a_thousand_hostile_records(project: Path) -> None:
    records = hostile()
    assert len(records) == 1000
    good = [{"prompt": f"what is {n} times {n + 7}", "completion": f" a{n}"} for n in range(GOOD)]
    lines = [*records, *(json.dumps(row).encode() for row in good)]
    random.Random(1).shuffle(lines)
    (project / "data.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    spelt = {
        "source": {"type": "files", "path": "data.jsonl"},
        "split": {"labelled": 50, "unlabelled": 10_000, "dev": 20, "test": 30},
    }
    run(validated(CollectParams, spelt, "collect"))
    summary = json.loads((COLLECT / "summary.json").read_text())
    kept = sum(len(list(read_rows(p, Row))) for p in (LABELLED, DEV, TEST, UNLABELLED))
    aside = [json.loads(line) for line in (COLLECT / "quarantine.jsonl").open("rb")]
    blank = sum(not line.strip() for line in lines)
    assert kept + len(aside) == summary["read"] == len(lines) - blank == 1400 - blank
    assert all(row["reason"] and row["line"] > 0 and len(row["text"]) <= 200 for row in aside)
    reasons = Counter(row["reason"] for row in aside)
    assert reasons["a key twice: 'prompt'"] == 50
    assert sum(count for why, count in reasons.items() if why.startswith("not UTF-8")) >= 50
    assert reasons["a line of more than 1048576 characters"] == 2
    assert reasons["half a surrogate pair, which UTF-8 cannot hold"] == 50
    prompts = {row.prompt for p in (LABELLED, DEV, TEST, UNLABELLED) for row in read_rows(p, Row)}
    assert {row["prompt"] for row in good} <= prompts
