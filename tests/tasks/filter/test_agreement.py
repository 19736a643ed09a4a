"""Right answers by reference, and by the vote of the samples."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from cohobate.scoring.verifiers import Task
from cohobate.scoring.votes import votes_of
from tests.tasks.filter.test_filters import context, judged, response


def samples(prompt: str, *answers: str):
    return [response(answer, prompt, sample=n) for n, answer in enumerate(answers)]


def test_verified_by_the_tasks_verifier():
    rows = [*samples("p1", " Animal", " plant"), *samples("p2", " plant")]
    known = replace(context(), references={rows[0].id: " animal"})
    assert judged({"type": "verified"}, rows, known) == ["kept", "wrong (label)", "kept"]
    strict = judged({"type": "verified", "unknown": "refuse"}, rows, known)
    assert strict == ["kept", "wrong (label)", "no right answer is known"]


def test_verified_by_value():
    rows = samples("p", r"so it is $\frac{1}{2}$", "0.5", "2", "who knows", r"\boxed{2/4}")
    known = replace(context(), task=Task(verifier={"type": "math"}), references={rows[0].id: "1/2"})
    wrong = "wrong (math)"
    assert judged({"type": "verified"}, rows, known) == ["kept", "kept", wrong, wrong, "kept"]


def test_agreement():
    rows = [
        *samples("most", " a", " b", " a", "A "),
        *samples("split", " a", " b", " c"),
        *samples("alone", " z"),
        *samples("all", " a", " a"),
    ]
    verdicts = judged({"type": "agreement", "min_share": 0.5}, rows)
    assert verdicts == [
        *["kept", "outvoted", "kept", "kept"],
        *["samples disagree"] * 3,
        "kept",
        *["kept", "kept"],
    ]
    frontier = judged({"type": "agreement", "min_share": 0.5, "max_share": 0.9}, rows)
    assert frontier[-2:] == ["samples agree too well"] * 2
    assert judged({"type": "agreement"}, []) == []
    with pytest.raises(ValidationError, match="above max_share"):
        judged({"type": "agreement", "min_share": 0.8, "max_share": 0.5}, [])


def test_of_equally_common_answers_the_first_one_wins():
    rows = samples("p", " b", " a", " a", " b")
    verdicts = judged({"type": "agreement"}, rows)
    assert verdicts == ["kept", "outvoted", "outvoted", "kept"]
    assert votes_of(rows, lambda row: row.answer)[rows[0].id][1] == 0.5
