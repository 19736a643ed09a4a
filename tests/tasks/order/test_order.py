import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tasks.errors import UserError
from tasks.order.difficulty import Difficulty
from tasks.order.schedule import EasyToHard, Shuffled
from tasks.order.stage import OrderParams, run
from tasks.params import validated
from tasks.records import FILTER, ORDER, Lesson, Response, read_rows, row_id, write_rows

LOSSES = [0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.1]


def response(n: int, loss: float | None) -> Response:
    prompt = f"prompt {n}" + "!" * (n % 3)
    return Response(
        id=row_id(prompt),
        prompt=prompt,
        answer="a" * (7 - n),
        teacher="main",
        finish="stop",
        logprob=None if loss is None else -loss,
    )


ROWS = [response(n, loss) for n, loss in enumerate(LOSSES)]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(FILTER / "kept.jsonl", ROWS)
    return tmp_path


def ordered(schedule: dict, difficulty: str = "teacher_loss") -> list[tuple[int, float, int]]:
    """The lessons as (row, difficulty, stage)."""
    spelt = {"difficulty": {"type": difficulty}, "schedule": schedule}
    run(validated(OrderParams, spelt, "order"))
    places = {row.id: place for place, row in enumerate(ROWS)}
    lessons = read_rows(ORDER / "train.jsonl", Lesson)
    return [(places[lesson.id], lesson.difficulty, lesson.stage) for lesson in lessons]


def scores(**spelt) -> list[float]:
    difficulty = TypeAdapter(Difficulty).validate_python(spelt)
    return [difficulty.of(row, place) for place, row in enumerate(ROWS)]


def test_difficulties():
    assert scores(type="teacher_loss") == LOSSES
    assert scores(type="given") == [0, 1, 2, 3, 4, 5, 6]
    assert scores(type="length", text="prompt") == [8, 9, 10, 8, 9, 10, 8]
    assert scores(type="length", text="answer") == [7, 6, 5, 4, 3, 2, 1]
    assert scores(type="length") == [15, 15, 15, 12, 12, 12, 9]
    drawn = scores(type="random", seed=1)
    assert drawn == scores(type="random", seed=1) != scores(type="random", seed=2)
    assert len(set(drawn)) == 7 and all(0 <= score <= 1 for score in drawn)


def test_a_teacher_without_log_probabilities_has_no_loss(project):
    write_rows(FILTER / "kept.jsonl", [response(0, None)])
    with pytest.raises(UserError, match="gave no log-probability"):
        ordered({"type": "shuffled"})


def test_shuffled_is_one_stage_in_the_order_given(project):
    assert ordered({"type": "shuffled"}) == [(n, loss, 0) for n, loss in enumerate(LOSSES)]


def test_disjoint_stages(project):
    lessons = ordered({"type": "easy_to_hard", "stages": 3, "mode": "disjoint"})
    assert [(row, stage) for row, _, stage in lessons] == [
        (1, 0), (6, 0), (5, 1), (3, 1), (0, 2), (4, 2), (2, 2),
    ]  # fmt: skip


def test_cumulative_stages_meet_the_earlier_rows_again(project):
    lessons = ordered({"type": "easy_to_hard", "stages": 3})
    assert [[row for row, _, stage in lessons if stage == n] for n in range(3)] == [
        [1, 6],
        [1, 6, 5, 3],
        [1, 6, 5, 3, 0, 4, 2],
    ]
    assert [stage for *_, stage in lessons] == sorted(stage for *_, stage in lessons)
    summary = json.loads((ORDER / "summary.json").read_text())
    assert (summary["rows"], summary["lessons"], summary["stages"]) == (7, 13, 3)
    assert summary["mean difficulty of stage 0"] == 0.1


def test_hard_to_easy(project):
    lessons = ordered({"type": "easy_to_hard", "stages": 2, "mode": "disjoint", "reverse": True})
    assert [row for row, _, stage in lessons if stage == 0] == [2, 4, 0]


def test_lessons_are_the_rows_and_two_runs_the_same_bytes(project):
    ordered({"type": "easy_to_hard", "stages": 2})
    first = (ORDER / "train.jsonl").read_bytes()
    ordered({"type": "easy_to_hard", "stages": 2})
    assert (ORDER / "train.jsonl").read_bytes() == first
    for lesson in read_rows(ORDER / "train.jsonl", Lesson):
        assert Response(**lesson.model_dump(exclude={"difficulty", "stage"})) in ROWS


def test_more_stages_than_rows_are_refused(project):
    with pytest.raises(UserError, match="7 rows do not fill 8 stages"):
        ordered({"type": "easy_to_hard", "stages": 8})


@given(
    st.lists(st.floats(0, 10), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from(["cumulative", "disjoint"]),
    st.booleans(),
)
def test_schedules_cover_every_row_in_the_order_of_difficulty(difficulties, stages, mode, reverse):
    schedule = EasyToHard(type="easy_to_hard", stages=stages, mode=mode, reverse=reverse)
    found = [list(rows) for rows in schedule.stages_of(difficulties)]
    assert len(found) == stages
    disjoint = [sorted(set(found[n]) - set(found[n - 1] if n else [])) for n in range(stages)]
    if mode == "disjoint":
        assert sorted(row for rows in found for row in rows) == list(range(len(difficulties)))
        assert max(map(len, found)) - min(map(len, found)) <= 1
    else:
        assert sorted(found[-1]) == list(range(len(difficulties)))
        assert all(found[n] == found[n + 1][: len(found[n])] for n in range(stages - 1))
    levels = [[difficulties[row] for row in rows] for rows in disjoint if rows]
    for earlier, later in pairwise(levels):
        assert min(earlier) >= max(later) if reverse else max(earlier) <= min(later)
    assert Shuffled(type="shuffled").stages_of(difficulties) == [range(len(difficulties))]
