import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from cohobate.data.messages import Message, Prompt, ToolCall
from cohobate.data.records import (
    FILTER,
    GENERATE,
    LABELLED,
    PREFERENCES,
    Dropped,
    Pair,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.methods.dpo import _row
from cohobate.params import ParamsError, validated
from cohobate.scoring.judge import Judge
from cohobate.scoring.verifiers import Task
from tasks.preferences.candidates import Pairing
from tasks.preferences.stage import run

TASK = Task(verifier={"type": "label"})
SAMPLES = {
    "p1": (" animal", " plant", " animal", "Animal "),
    "p2": (" animal", " plant"),
    "p3": (" plant", " plant"),
    "p4": (" animal", " plant", " person"),
}
RIGHT = {"p1": " animal", "p2": " plant"}


def sample(prompt: Prompt, number: int, answer: str) -> Response:
    return Response(
        id=row_id(prompt),
        prompt=prompt,
        answer=answer,
        teacher="main",
        sample=number,
        finish="stop",
        origin="teacher",
    )


@pytest.fixture
def project(project: Path) -> Path:
    rows = [sample(p, n, a) for p, answers in SAMPLES.items() for n, a in enumerate(answers)]
    write_rows(GENERATE / "main/responses.jsonl", rows)
    write_rows(FILTER / "kept.jsonl", rows[:5])
    dropped_by = {"filter": "contaminated", "reason": "identical to an evaluation prompt"}
    write_rows(FILTER / "dropped.jsonl", [Dropped(**rows[-1].model_dump(), **dropped_by)])
    labelled = [
        Row(id=row_id(p), prompt=p, answer=a, origin="ground_truth") for p, a in RIGHT.items()
    ]
    write_rows(LABELLED, labelled)
    (project / "judge").mkdir()
    (project / "judge/config.json").write_text("{}")
    return project


def paired(**spelt) -> tuple[list[Pair], dict]:
    run(validated(Pairing, spelt, "preferences"), TASK)
    return list(read_rows(PREFERENCES / "pairs.jsonl", Pair)), summary()


def summary() -> dict:
    return json.loads((PREFERENCES / "summary.json").read_text())


def told(pairs: list[Pair]) -> list[tuple]:
    return [(pair.prompt, pair.chosen, pair.rejected, pair.margin) for pair in pairs]


def test_no_preferences_are_an_empty_file(project):
    pairs, figures = paired(type="none")
    assert pairs == [] and (PREFERENCES / "pairs.jsonl").read_bytes() == b""
    assert figures["pairs"] == 0


def test_the_verifier_puts_right_before_wrong(project):
    pairs, figures = paired(type="best_vs_worst", by={"type": "verifier"})
    assert told(pairs) == [("p1", " animal", " plant", 1.0), ("p2", " plant", " animal", 1.0)]
    assert {pair.chosen_origin for pair in pairs} == {"teacher"}
    assert (figures["prompts_with_different_answers"], figures["without_verdict"]) == (2, 0)


def test_pairs_are_of_answers_and_keep_the_prefix(project):
    paths = list(GENERATE.glob("*/responses.jsonl"))
    rows = [row for path in paths for row in read_rows(path, Response)]
    more = {"prefix": "[rationale] ", "target": "rationale", "answer": " a reason"}
    both = [[row.prefixed("[label] "), row.model_copy(update=more)] for row in rows]
    write_rows(paths[0], [row for two in both for row in two])
    pairs, _ = paired(type="best_vs_worst", by={"type": "verifier"})
    assert told(pairs) == [("p1", " animal", " plant", 1.0), ("p2", " plant", " animal", 1.0)]
    assert {pair.prefix for pair in pairs} == {"[label] "}


def test_each_side_of_a_pair_has_its_reasoning_and_its_calls(project):
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    prompt = (Message(role="user", content="x?", tools=tools),)
    call = ToolCall(name="f", arguments='{"x": 1}')
    right = sample(prompt, 0, "").model_copy(update={"tool_calls": (call,), "reasoning": "Hm."})
    wrong = sample(prompt, 1, "No.").model_copy(update={"reasoning": "Ha."})
    write_rows(GENERATE / "main/responses.jsonl", [wrong, right])
    write_rows(LABELLED, [Row(id=row_id(prompt), prompt=prompt, answer="", tool_calls=(call,))])
    by = validated(Pairing, {"type": "best_vs_worst", "by": {"type": "verifier"}}, "preferences")
    run(by, Task(verifier={"type": "tool_calls"}))
    (pair,) = read_rows(PREFERENCES / "pairs.jsonl", Pair)
    assert (pair.chosen, pair.chosen_reasoning, pair.chosen_tool_calls) == ("", "Hm.", (call,))
    assert (pair.rejected, pair.rejected_reasoning) == ("No.", "Ha.")
    assert pair.rejected_tool_calls is None and pair.prompt == prompt
    sides = [_row(pair, side, 0) for side in ("chosen", "rejected")]
    assert [(row.answer, row.reasoning, row.tool_calls) for row in sides] == [
        ("", "Hm.", (call,)),
        ("No.", "Ha.", None),
    ]


def test_votes_and_ties(project):
    pairs, figures = paired(type="best_vs_worst", by={"type": "votes"})
    assert told(pairs) == [("p1", " animal", " plant", 0.5)]
    assert figures["ties"] == 1  # p2; p3 has one answer; p4 gives an evaluation prompt away
    shorter, figures = paired(type="best_vs_worst", by={"type": "votes"}, ties="shorter")
    assert told(shorter)[1] == ("p2", " plant", " animal", 0.0)
    with pytest.raises(UserError, match="2 ties"):
        paired(type="best_vs_worst", by={"type": "votes"}, min_margin=0.6)


def test_the_bias_to_length_is_reported(project):
    _, figures = paired(type="best_vs_worst", by={"type": "verifier"})
    assert (figures["chosen_is_longer"], figures["chosen_is_shorter"]) == (0.5, 0.5)
    assert figures["length_bias"] == 0
    assert figures["mean_characters_chosen"] == figures["mean_characters_rejected"] == 5.5
    _, figures = paired(type="best_vs_worst", by={"type": "votes"})
    assert figures["length_bias"] == 1


def test_samples_of_several_teachers_meet(project):
    write_rows(GENERATE / "second/responses.jsonl", [sample("p3", 0, " animal")])
    pairs, _ = paired(type="best_vs_worst", by={"type": "votes"})
    assert ("p3", " plant", " animal", 0.3333) in told(pairs)


def test_a_judge_is_not_asked_where_the_verifier_knows(project, monkeypatch):
    judged_texts = []

    def opened(self, folder):
        def ask(conversations):
            judged_texts.extend(conversations)
            return ['{"better": "first"}'] * len(conversations)  # in love with a position

        return ask

    monkeypatch.setattr(Judge, "open", opened)
    write_rows(LABELLED, [Row(id=row_id("p1"), prompt="p1", answer=" animal")])
    pairs, figures = paired(type="best_vs_worst", by={"type": "judge"}, judge="judge")
    assert [pair.prompt for pair in pairs] == ["p1"]
    assert len(judged_texts) == 2 and "p2" in judged_texts[0][1].content
    assert (figures["judged inconsistent"], figures["ties"]) == (1, 1)


def test_a_judge_that_says_nothing_makes_no_pair(project, monkeypatch):
    judge = lambda conversations: ["Well."] * len(conversations)  # noqa: E731
    monkeypatch.setattr(Judge, "open", lambda self, folder: judge)
    write_rows(LABELLED, [])
    with pytest.raises(UserError, match="2 without a verdict"):
        paired(type="best_vs_worst", by={"type": "judge"}, judge="judge")
    assert summary()["judged no verdict"] == 6 + 1


def test_the_students_own_answers_are_the_rejected_ones(project, checkpoint):
    pairs, figures = paired(
        type="teacher_vs_student",
        by={"type": "trusted"},
        student=str(checkpoint),
        decoding={"max_tokens": 4},
        precision="float32",
        threads=1,
    )
    assert [pair.prompt for pair in pairs] == ["p1", "p2"]
    assert {(p.chosen_origin, p.rejected_origin) for p in pairs} == {("teacher", "student")}
    assert figures["mean_margin"] == 1
    labelled, _ = paired(
        type="teacher_vs_student",
        rows="labelled",
        by={"type": "verifier"},
        student=str(checkpoint),
        prompts=1,
    )
    assert [(p.chosen, p.chosen_origin) for p in labelled] == [(" animal", "ground_truth")]


def test_a_reward_model_ranks(project, monkeypatch):
    scores = lambda candidates: (float(len(answer)) for _, answer in candidates)  # noqa: E731
    monkeypatch.setattr(
        "cohobate.scoring.reward_models.RewardModel.of", lambda *_: SimpleNamespace(scores=scores)
    )
    pairs, _ = paired(type="best_vs_worst", by={"type": "reward"}, judge="judge")
    assert told(pairs)[1] == ("p2", " animal", " plant", 1.0)


def test_samples_of_one_origin_cannot_be_ranked_by_origin():
    with pytest.raises(ParamsError, match="rank them by another criterion"):
        paired(type="best_vs_worst", by={"type": "trusted"})


def test_two_runs_write_the_same_bytes(project):
    runs = []
    for _ in range(2):
        paired(type="best_vs_worst", by={"type": "verifier"})
        runs.append({path.name: path.read_bytes() for path in PREFERENCES.iterdir()})
    assert runs[0] == runs[1] and set(runs[0]) == {"pairs.jsonl", "summary.json"}
