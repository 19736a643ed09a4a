"""Sources beside files and WordNet: data sets of Hugging Face, formats by columns, problems."""

import json
from pathlib import Path

import pytest

from cohobate.data.records import (
    COLLECT,
    DEV,
    LABELLED,
    OOD,
    TEST,
    UNLABELLED,
    Row,
    read_rows,
)
from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from cohobate.scoring.verifiers import Code
from tasks.collect.reasoning import worked_steps
from tasks.collect.stage import CollectParams, run

SIZES = {"labelled": 6, "unlabelled": 30, "dev": 3, "test": 5}
TEMPLATE = {"prompt": "{question}\nA:", "answer": " {answer}"}


def collect(source: dict, template: dict | None = None, **split) -> dict:
    spelt = {"source": source, "split": SIZES | split}
    spelt |= {"template": template} if template else {}
    run(validated(CollectParams, spelt, "collect"))
    return json.loads((COLLECT / "summary.json").read_text())


def records(first: int, count: int) -> list[dict]:
    span = range(first, first + count)
    return [{"question": f"{n} times {n * n}", "answer": f"a{n % 3}", "topic": n % 4} for n in span]


def test_saved_data_sets_keep_their_splits(project):
    from datasets import Dataset, DatasetDict

    parts = {"train": records(0, 60), "validation": records(60, 8), "test": records(70, 9)}
    splits = {name: Dataset.from_list(rows) for name, rows in parts.items()}
    DatasetDict(splits).save_to_disk(project / "saved")
    summary = collect({"type": "datasets", "path": "saved"}, TEMPLATE, test=100, dev=100)
    assert (summary["read"], summary["dev"], summary["test"]) == (77, 8, 9)
    tests = {row.prompt for row in read_rows(TEST, Row)}
    assert tests == {f"{row['question']}\nA:" for row in parts["test"]}
    named = DatasetDict({"train_sft": splits["train"], "test_sft": splits["test"]})
    named.save_to_disk(project / "named")
    source = {"type": "datasets", "path": "named", "part": {"test_sft": "test"}}
    assert collect(source, TEMPLATE, test=100)["test"] == 9
    splits["train"].select(range(50)).save_to_disk(project / "one")
    assert collect({"type": "datasets", "path": "one"}, TEMPLATE)["read"] == 50
    with pytest.raises(UserError, match="cannot read the data set"):
        collect({"type": "datasets", "path": "nowhere"}, TEMPLATE)


def test_without_a_hub_the_error_says_what_to_do(project):
    with pytest.raises(UserError, match="cannot read the data set org/none") as refused:
        collect({"type": "hub", "name": "org/none", "revision": "0" * 40}, TEMPLATE)
    assert "save_to_disk" in refused.value.fix
    with pytest.raises(ParamsError, match="revision"):
        collect({"type": "hub", "name": "org/none", "revision": "main"}, TEMPLATE)


def test_problems_by_name_and_level(project):
    source = {"type": "reasoning_gym", "tasks": {"chain_sum": 1, "leg_counting": 0}, "rows": 40}
    summary = collect(source, TEMPLATE, ood=7, ood_groups=["leg_counting"])
    assert summary["source"].startswith("reasoning-gym ")
    groups = {path: {row.group for row in read_rows(path, Row)} for path in (LABELLED, DEV, OOD)}
    assert groups == {LABELLED: {"chain_sum"}, DEV: {"chain_sum"}, OOD: {"leg_counting"}}
    first = LABELLED.read_bytes()
    collect(source, TEMPLATE, ood=7, ood_groups=["leg_counting"])
    assert LABELLED.read_bytes() == first
    for tasks in ({"no_such_task": 0}, {"chain_sum": 99}):
        with pytest.raises(UserError, match="cannot generate the problems"):
            collect({"type": "reasoning_gym", "tasks": tasks, "rows": 5}, TEMPLATE)


def test_sums_have_their_steps(project):
    template = {"prompt": "{question}", "answer": "{steps} so {answer}"}
    collect({"type": "reasoning_gym", "tasks": {"chain_sum": 1}, "rows": 40}, template)
    assert worked_steps("4 - 11 + 12") == "4 - 11 = -7\n-7 + 12 = 5"
    for row in read_rows(LABELLED, Row):
        steps, _, answer = row.answer.partition(" so ")
        assert steps.endswith(f"= {answer}")


def test_groups_out_of_distribution_are_nowhere_else(project):
    lines = "".join(json.dumps(row) + "\n" for row in records(0, 100))
    Path("data.jsonl").write_text(lines)
    source = {"type": "files", "path": "data.jsonl", "group": "topic"}
    summary = collect(source, TEMPLATE, ood=10, ood_groups=["3"])
    assert summary["ood"] == 10 == len(list(read_rows(OOD, Row)))
    rest = [row for p in (LABELLED, DEV, TEST, UNLABELLED) for row in read_rows(p, Row)]
    assert {row.group for row in rest} == {"0", "1", "2"}
    assert {row.group for row in read_rows(OOD, Row)} == {"3"}
    assert all(row.answer for row in read_rows(OOD, Row))
    assert collect(source, TEMPLATE, ood=26, ood_groups=["3"])["ood"] == 25
    with pytest.raises(UserError, match="0 rows for ood, 5 needed"):
        collect(source, TEMPLATE, ood=5, ood_groups=["none"])


def test_no_prompt_is_on_both_sides_of_the_border(project):
    rows = [{"question": f"{n} times {n * n}", "answer": "a", "part": "ood"} for n in range(20)]
    rows += [row | {"part": "train"} for row in [*rows[:5], *records(100, 60)]]
    Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = collect({"type": "files", "path": "data.jsonl", "split": "part"}, TEMPLATE, ood=20)
    assert summary["ood"] == 20 and summary["set aside: duplicate prompt"] == 5


def test_programs_pass_their_own_tests(project):
    template = {"prompt": "{question}\n", "answer": "{answer}"}
    collect({"type": "programs", "rows": 200}, template)
    rows = list(read_rows(LABELLED, Row))
    code = Code(type="code")
    assert all(code.correct(row.answer, row.answer) for row in rows[:5])
    assert not code.correct(rows[0].answer, rows[1].answer)
    assert len({row.group for row in rows}) > 2
    first = LABELLED.read_bytes()
    collect({"type": "programs", "rows": 200}, template)
    assert LABELLED.read_bytes() == first
