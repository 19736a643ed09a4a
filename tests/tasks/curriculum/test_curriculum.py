import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cohobate.data.records import (
    CURRICULUM,
    FILTER,
    GENERATE,
    Response,
    TrainingRow,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.params import validated
from cohobate.scoring.verifiers import Task
from tasks.curriculum.difficulty import Difficulty, DifficultyContext
from tasks.curriculum.schedule import EasyToHard, Mixed, Shuffled
from tasks.curriculum.stage import CurriculumParams, run

TASK = Task(verifier={"type": "label"})
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
    run(validated(CurriculumParams, spelt, "curriculum"), TASK)
    places = {row.id: place for place, row in enumerate(ROWS)}
    lessons = read_rows(CURRICULUM / "train.jsonl", TrainingRow)
    return [(places[lesson.id], lesson.difficulty, lesson.stage) for lesson in lessons]


def scores(**spelt) -> list[float]:
    return measured(ROWS, **spelt)


def measured(rows: list[Response], scorer: str = "", **spelt) -> list[float]:
    difficulty = TypeAdapter(Difficulty).validate_python(spelt)
    return list(difficulty.difficulties(rows, DifficultyContext(TASK, scorer)))


def test_difficulties():
    assert scores(type="teacher_loss") == LOSSES
    assert scores(type="given") == [0, 1, 2, 3, 4, 5, 6]
    assert scores(type="length", text="prompt") == [8, 9, 10, 8, 9, 10, 8]
    assert scores(type="length", text="answer") == [7, 6, 5, 4, 3, 2, 1]
    assert scores(type="length") == [15, 15, 15, 12, 12, 12, 9]
    drawn = scores(type="random", seed=1)
    assert drawn == scores(type="random", seed=1) != scores(type="random", seed=2)
    assert len(set(drawn)) == 7 and all(0 <= score <= 1 for score in drawn)


def answered(*answers: str, group: str = "") -> list[Response]:
    prompt = f"a prompt of {len(answers)}"
    fields = {"id": row_id(prompt), "prompt": prompt, "group": group}
    first = response(0, 1.0)
    return [
        first.model_copy(update=fields | {"answer": answer, "sample": n})
        for n, answer in enumerate(answers)
    ]


def test_the_length_of_a_rationale_is_what_stands_before_the_result():
    rows = answered("two and two\nmakes four\n4", "4", "first #### 1 #### 4\n")
    assert measured(rows, type="rationale_length") == [5, 0, 0]
    assert measured(rows, type="rationale_length", before="####") == [0, 0, 3]


def test_the_weaker_teachers_rows_come_first():
    names = ("main", "weaker", "main")
    rows = [response(n, None).model_copy(update={"teacher": t}) for n, t in enumerate(names)]
    assert measured(rows, type="teacher_order", teachers=["weaker", "main"]) == [1, 0, 1]
    with pytest.raises(UserError, match="the teacher 'main' is not among"):
        measured(rows, type="teacher_order", teachers=["weaker"])


def test_a_given_label():
    rows = [*answered("a", group="high"), *answered("b", "c", group="low")]
    assert measured(rows, type="given_label", labels=["low", "high"]) == [1, 0, 0]
    with pytest.raises(UserError, match="the group 'high' is not among low"):
        measured(rows, type="given_label", labels=["low"])


def test_the_pass_rate_counts_all_samples_that_were_drawn(project):
    disputed, agreed = answered(" a", " b", "A", " a"), answered(" c", " c")
    write_rows(GENERATE / "main/responses.jsonl", [*disputed, *agreed, *ROWS[:1]])
    kept = [disputed[0], agreed[0], ROWS[0]]
    assert measured(kept, type="pass_rate") == [0.25, 0, 0]


def test_what_a_student_finds_hard(checkpoint):
    from cohobate.generation.likelihood import Likelihood

    likelihood = Likelihood.of(checkpoint, "float32", 1)
    exact = {"scorer": str(checkpoint), "precision": "float32", "threads": 1}
    losses = measured(ROWS, type="student_loss", **exact)
    assert losses == [round(loss, 4) for loss in likelihood.answer_losses(ROWS)]
    gaps = measured(ROWS, type="loss_gap", **exact)
    assert gaps == pytest.approx([s - t for s, t in zip(losses, LOSSES, strict=True)], abs=1e-3)
    ifd = [round(score, 4) for score in likelihood.instruction_following_difficulty(ROWS)]
    assert measured(ROWS, type="ifd", **exact) == ifd
    with pytest.raises(UserError, match="no model in this folder"):
        measured(ROWS, type="student_loss", scorer="models/none")


def sizes(**spelt) -> list[int]:
    schedule = EasyToHard(type="easy_to_hard", **spelt)
    return [len(rows) for rows in schedule.stages_of(range(100))]


def test_pacing():
    assert sizes(stages=4) == [25, 50, 75, 100]
    assert sizes(stages=4, pacing="root") == [50, 71, 87, 100]
    assert sizes(stages=4, start=0.2) == [40, 60, 80, 100]
    assert sizes(stages=4, pacing="root", start=0.5) == [66, 79, 90, 100]
    assert sizes(stages=4, pacing="root", mode="disjoint") == [50, 21, 16, 13]


def test_a_staged_mix_holds_every_row_once_and_mostly_its_own_level():
    stages = Mixed(type="mixed", stages=4, own=0.7).stages_of(range(400))
    assert sorted(row for rows in stages for row in rows) == list(range(400))
    for stage, rows in enumerate(stages):
        by_level = [sum(row // 100 == level for row in rows) for level in range(4)]
        assert by_level == [70 if level == stage else 10 for level in range(4)]
        assert list(rows) == sorted(rows)
    only = Mixed(type="mixed", stages=4, own=1).stages_of(range(400))
    assert [len(rows) for rows in only] == [100] * 4
    alone = Mixed(type="mixed", stages=1).stages_of([3, 1])
    assert [list(rows) for rows in alone] == [[1, 0]]
    hardest = Mixed(type="mixed", stages=4, reverse=True).stages_of(range(400))[0]
    assert sum(row >= 300 for row in hardest) == 70


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
    summary = json.loads((CURRICULUM / "summary.json").read_text())
    assert (summary["rows"], summary["lessons"], summary["stages"]) == (7, 13, 3)
    assert summary["mean difficulty of stage 0"] == 0.1


def test_hard_to_easy(project):
    lessons = ordered({"type": "easy_to_hard", "stages": 2, "mode": "disjoint", "reverse": True})
    assert [row for row, _, stage in lessons if stage == 0] == [2, 4, 0]


def test_lessons_are_the_rows_and_two_runs_the_same_bytes(project):
    ordered({"type": "easy_to_hard", "stages": 2})
    first = (CURRICULUM / "train.jsonl").read_bytes()
    ordered({"type": "easy_to_hard", "stages": 2})
    assert (CURRICULUM / "train.jsonl").read_bytes() == first
    for lesson in read_rows(CURRICULUM / "train.jsonl", TrainingRow):
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
    by_stage = [list(rows) for rows in schedule.stages_of(difficulties)]
    assert len(by_stage) == stages
    disjoint = [sorted(set(by_stage[n]) - set(by_stage[n - 1] if n else [])) for n in range(stages)]
    if mode == "disjoint":
        assert sorted(row for rows in by_stage for row in rows) == list(range(len(difficulties)))
        assert max(map(len, by_stage)) - min(map(len, by_stage)) <= 1
    else:
        assert sorted(by_stage[-1]) == list(range(len(difficulties)))
        assert all(by_stage[n] == by_stage[n + 1][: len(by_stage[n])] for n in range(stages - 1))
    levels = [[difficulties[row] for row in rows] for rows in disjoint if rows]
    for earlier, later in pairwise(levels):
        assert min(earlier) >= max(later) if reverse else max(earlier) <= min(later)
    assert Shuffled(type="shuffled").stages_of(difficulties) == [range(len(difficulties))]
