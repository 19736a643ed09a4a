import json
from pathlib import Path

import pytest

from cohobate.data.records import (
    DEV,
    FILTER,
    GENERATE,
    LABELLED,
    TEST,
    Dropped,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from cohobate.scoring.verifiers import Task
from tasks.filter.stage import FilterParams, run

TASK = Task(verifier={"type": "label"})
FILTERS = [
    {"type": "unfinished"},
    {"type": "length", "max_characters": 30},
    {"type": "inadmissible"},
    {"type": "exact_duplicates"},
    {"type": "near_duplicates"},
    {"type": "confidence", "drop_lowest": 0.1},
    {"type": "class_balance", "max_share": 0.6},
]


def row(text: str, answer: str) -> Row:
    prompt = f"Definition: {text}\nCategory:"
    return Row(id=row_id(prompt), prompt=prompt, answer=answer, origin="ground_truth")


def response(n: int, answer: str = " animal", **more) -> Response:
    prompt = f"Definition: the {n}th thing with {n * n} corners and {n * 31} sides\nCategory:"
    options = {"id": row_id(prompt), "prompt": prompt, "finish": "stop", "logprob": -n / 100}
    return Response(**(options | {"answer": answer, "teacher": "main", "origin": "teacher"} | more))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(LABELLED, [row("a rodent", " animal"), row("an oak", " plant")])
    write_rows(DEV, [row("a quick brown fox that jumped over the lazy dog", " animal")])
    write_rows(TEST, [row("the feeling that one has been in a place before", " feeling")])
    return tmp_path


def responses() -> list[Response]:
    leaked = "Definition: it says a quick brown fox that jumped over the lazy dog\nCategory:"
    return [
        *(response(n, " animal" if n % 3 else " plant") for n in range(60)),
        response(60, " big cat"),
        response(61, finish="length"),
        response(62, " " + "x" * 50),
        response(63, prompt=leaked, id=row_id(leaked)),
        response(5, " animal", sample=1),
    ]


@pytest.mark.parametrize("name", ["judge", "reward"])
def test_raw_text_is_not_judged_by_its_prompt(project, name):
    raw = {"prompt": "", "answer": "A text.", "task": "books"}
    write_rows(GENERATE / "main/responses.jsonl", [response(1, **raw)])
    options = {"min_reward": 0} if name == "reward" else {}
    params = validated(FilterParams, {"filters": [{"type": name, **options}]}, "filter")
    with pytest.raises(UserError, match=f"the filter {name} judges .* raw text of source books"):
        run(params, Task(verifier={"type": "label"}))


def test_filters_verifiers_and_labels_are_those_of_each_task(project):
    two = Task(verifier={"type": "label"}, tasks={"sums": {"verifier": {"type": "numeric"}}})
    labelled = [row("a rodent", " animal"), row("an oak", " plant")]
    labelled = [one.model_copy(update={"task": "nouns"}) for one in labelled]
    write_rows(LABELLED, labelled)
    rows = [response(n, task="nouns") for n in range(4)]
    rows += [response(n, f" so it is {n}", task="sums") for n in range(4, 8)]
    rows += [response(8, " 12", task="nouns"), response(9, " animal", task="sums")]
    rows.append(response(10, " animal", task="nouns", finish="length"))
    rows.append(response(11, " 5", task="sums", finish="length"))
    write_rows(GENERATE / "main/responses.jsonl", rows)
    filters = [{"type": "unfinished", "tasks": ["sums"]}, {"type": "inadmissible"}]
    run(validated(FilterParams, {"filters": filters}, "filter"), two)
    dropped = {d.id: d.reason for d in read_rows(FILTER / "dropped.jsonl", Dropped)}
    assert dropped == {
        rows[8].id: "no valid answer (label)",
        rows[9].id: "no valid answer (numeric)",
        rows[11].id: "cut off at the length limit",
    }
    steps = json.loads((FILTER / "funnel.json").read_text())
    assert [step.get("tasks") for step in steps] == [None, ["sums"], None]
    kept = list(read_rows(FILTER / "kept.jsonl", Response))
    assert [one.task for one in kept] == ["nouns"] * 4 + ["sums"] * 4 + ["nouns"]


def filtered(filters=FILTERS, **more) -> dict:
    run(validated(FilterParams, {"filters": filters, **more}, "filter"), TASK)
    return json.loads((FILTER / "summary.json").read_text())


def test_every_response_is_kept_or_dropped_with_a_reason(project):
    write_rows(GENERATE / "main/responses.jsonl", responses())
    write_rows(
        GENERATE / "second/responses.jsonl", [response(n, teacher="second") for n in (100, 101)]
    )
    summary = filtered()
    kept = list(read_rows(FILTER / "kept.jsonl", Response))
    dropped = list(read_rows(FILTER / "dropped.jsonl", Dropped))
    assert summary["seen"] == 67 == len(kept) + len(dropped)
    assert summary["kept"] == len(kept)

    def ids(rows):
        return sorted((r.id, r.sample, r.teacher) for r in rows)

    assert ids([*kept, *dropped]) == ids(
        [*responses(), *(response(n, teacher="second") for n in (100, 101))]
    )
    assert [(d.filter, d.reason) for d in dropped[:5]] == [
        ("contaminated", "8 words in a row of an evaluation prompt"),
        ("unfinished", "cut off at the length limit"),
        ("length", "longer than 30 characters"),
        ("inadmissible", "no valid answer (label)"),
        ("exact_duplicates", "duplicate of an earlier answer"),
    ]
    assert {r.teacher for r in kept} == {
        "main"
    }  # the second one's log-probabilities are the lowest


def test_the_funnel_adds_up(project):
    write_rows(GENERATE / "main/responses.jsonl", responses())
    summary = filtered()
    funnel = json.loads((FILTER / "funnel.json").read_text())
    assert [step["filter"] for step in funnel] == ["contaminated", *(f["type"] for f in FILTERS)]
    seen = 65
    for step in funnel:
        assert step["seen"] == seen and sum(step["reasons"].values()) == step["dropped"]
        seen -= step["dropped"]
    assert seen == summary["kept"]
    assert summary["dropped by confidence"] == 6
    assert summary["top_reason"] == "over the limit of its answer (9)"
    answers = [r.answer for r in read_rows(FILTER / "kept.jsonl", Response)]
    assert answers.count(" animal") <= 0.6 * len(answers)
    assert (answers.count(" animal") + 1) > 0.6 * (len(answers) + 1)


def test_two_runs_write_the_same_bytes(project):
    write_rows(GENERATE / "main/responses.jsonl", responses())
    runs = []
    for _ in range(2):
        filtered()
        runs.append({path.name: path.read_bytes() for path in FILTER.iterdir()})
    assert runs[0] == runs[1]
    assert set(runs[0]) == {
        "kept.jsonl",
        "dropped.jsonl",
        "funnel.json",
        "summary.json",
    }


def test_rows_are_kept_as_they_came(project):
    write_rows(GENERATE / "main/responses.jsonl", responses())
    filtered([])
    lines = (GENERATE / "main/responses.jsonl").read_bytes().splitlines()
    kept = (FILTER / "kept.jsonl").read_bytes().splitlines()
    assert kept == [line for line in lines if b"brown fox" not in line]


def test_labelled_rows_close_to_evaluation_rows_are_reported(project):
    write_rows(GENERATE / "main/responses.jsonl", responses())
    assert filtered()["labelled_rows_near_evaluation"] == 0
    write_rows(LABELLED, [row("A quick brown fox that jumped over the lazy dog!", " animal")])
    assert filtered([])["labelled_rows_near_evaluation"] == 1


def test_when_nothing_is_left_the_reasons_are_at_hand(project):
    write_rows(GENERATE / "main/responses.jsonl", [response(n, " no label") for n in range(9)])
    with pytest.raises(UserError, match="drop all 9 responses"):
        filtered()
    assert len(list(read_rows(FILTER / "dropped.jsonl", Dropped))) == 9


def with_rationale(n: int, answer: str, rationale: str) -> list[Response]:
    first = response(n, answer, prefix="[label] ")
    second = {"answer": rationale, "prefix": "[rationale] ", "target": "rationale"}
    return [first, first.model_copy(update=second)]


def test_a_rationale_goes_the_way_of_its_answer(project):
    """Filters of answers leave it alone; what is wrong with its own text drops it alone."""
    known = response(3)
    write_rows(LABELLED, [known_row(known, " animal"), row("an oak", " plant")])
    pairs = [
        with_rationale(1, " animal", " It has fur, and what has fur is an animal."),
        with_rationale(2, " big cat", " It roars."),
        with_rationale(3, " plant", " It has leaves."),
        with_rationale(4, " animal", " I'm sorry, but I cannot help with that."),
    ]
    write_rows(GENERATE / "main/responses.jsonl", [one for pair in pairs for one in pair])
    filtered([
        {"type": "inadmissible"}, {"type": "boilerplate"}, {"type": "verified"},
        {"type": "exact_duplicates"}, {"type": "near_duplicates"},
        {"type": "length", "max_characters": 10},
    ])  # fmt: skip
    kept = [(r.id, r.target) for r in read_rows(FILTER / "kept.jsonl", Response)]
    ids = [pair[0].id for pair in pairs]
    assert kept == [(ids[0], None), (ids[0], "rationale"), (ids[3], None)]
    dropped = [(r.id, r.target, r.reason) for r in read_rows(FILTER / "dropped.jsonl", Dropped)]
    assert dropped == [
        (ids[1], None, "no valid answer (label)"),
        (ids[1], "rationale", "its answer is dropped"),
        (ids[3], "rationale", "refusal to answer"),
        (ids[2], None, "wrong (label)"),
        (ids[2], "rationale", "its answer is dropped"),
    ]


def known_row(known: Response, answer: str) -> Row:
    return Row(id=known.id, prompt=known.prompt, answer=answer, origin="ground_truth")


def test_no_responses_at_all(project):
    with pytest.raises(UserError, match="no responses to filter"):
        filtered()


def test_a_mistyped_filter_is_refused_with_the_nearest_name(project):
    with pytest.raises(ParamsError, match="did you mean 'near_duplicates'"):
        filtered([{"type": "near_duplicate"}])
