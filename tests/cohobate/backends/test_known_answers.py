"""Labelled prompts that the teacher answers, from `collect` to `preferences`: the label decides."""

import json
from collections import Counter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cohobate.data.records import (
    FILTER,
    LABELLED,
    PREFERENCES,
    Dropped,
    Pair,
    Response,
    Row,
    read_rows,
)
from cohobate.scoring.verifiers import Label
from tasks.__main__ import run_stage
from tests import tiny_project
from tests.loopback_teacher import LoopbackTeacher, publish_address

KIND_OF = {word: kind for kind, words in tiny_project.KINDS.items() for word in words.split()}
OTHER = {"animal": "plant", "plant": "person", "person": "animal"}
SETTINGS = {
    "collect.source": {"type": "files", "path": "rows.jsonl", "group": "answer"},
    "collect.split": {"seed": 0, "labelled": 12, "unlabelled": 8, "dev": 5, "test": 5},
    "generate": {
        "backend": {"type": "openai"},
        "template": "step-by-step",
        "prompts": "both",
        "samples": 2,
        "decoding": {"max_tokens": 60, "temperature": 1.0},
    },
    "filter.filters": [{"type": "inadmissible"}, {"type": "verified"}],
    "preferences.type": "best_vs_worst",
    "preferences.by": {"type": "verifier"},
}


@pytest.fixture
def answered(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages with a teacher that is right about each prompt once and wrong once."""
    times = Counter[str]()

    def good(service, body, path):
        prompt = body["messages"][0]["content"]
        kind = next(KIND_OF[word] for word in prompt.split() if word in KIND_OF)
        times[prompt] += 1
        kind = kind if times[prompt] % 2 else OTHER[kind]
        message = {"role": "assistant", "content": f"It has to be {kind}.\nAnswer: {kind}"}
        return json.dumps({"choices": [{"finish_reason": "stop", "message": message}]}).encode()

    monkeypatch.setattr(LoopbackTeacher, "good", good)
    lines = (json.dumps(row) + "\n" for row in tiny_project.rows())
    Path("rows.jsonl").write_text("".join(lines))
    yaml = YAML()
    document = yaml.load(tiny_project.ROOT / "params.yaml")
    for key, value in SETTINGS.items():
        tiny_project.put(document, key, value)
    yaml.dump(document, Path("params.yaml"))
    run_stage("collect")
    with LoopbackTeacher() as service:
        publish_address(service.url)
        run_stage("generate@main")
    run_stage("filter")
    run_stage("preferences")


def test_wrong_answers_are_dropped_and_make_pairs(answered: None) -> None:
    right = {row.id: row.answer or "" for row in read_rows(LABELLED, Row)}
    verifier = Label(type="label")
    dropped = list(read_rows(FILTER / "dropped.jsonl", Dropped))
    assert {(row.filter, row.target) for row in dropped} == {
        ("verified", None),
        ("verified", "rationale"),
    }
    assert Counter(row.id for row in dropped) == dict.fromkeys(right, 2)
    kept = list(read_rows(FILTER / "kept.jsonl", Response))
    answers = [row for row in kept if row.target is None]
    assert len(answers) == 12 + 2 * 8 and len(kept) == 2 * len(answers)
    known = [row for row in answers if row.id in right]
    assert all(verifier.correct(row.answer or "", right[row.id]) for row in known)
    pairs = list(read_rows(PREFERENCES / "pairs.jsonl", Pair))
    assert {pair.id for pair in pairs} == set(right)
    assert all(verifier.correct(pair.chosen, right[pair.id]) for pair in pairs)
    assert {pair.prefix for pair in pairs} == {"[label] "}
