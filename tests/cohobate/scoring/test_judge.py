import json
import re

import pytest

from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import row_id
from cohobate.scoring.judge import (
    Comparison,
    ComparisonReply,
    Judge,
    RatingReply,
    count_outcomes,
    nonce_for,
    parse_reply,
)
from cohobate.scoring.transcript import transcript
from cohobate.scoring.verifiers import Task
from tasks.preferences.ranking import (
    Candidate,
    Candidates,
    JudgeRanking,
    RankingContext,
    VoteRanking,
)
from tests.tasks.injections import INJECTIONS

JUDGE = Judge()


def shown(conversation) -> list[str]:
    """The texts that stand between the marks: task and answers."""
    return re.findall(r"<([0-9a-f]{16})>\n(.*?)\n</\1>", conversation[1].content, re.S)


def preferring(verdict):
    """A judge that compares the two answers it is shown by a function of their texts."""

    def ask(conversations):
        return [
            json.dumps({"better": verdict(*[text for _, text in shown(c)[1:]])})
            for c in conversations
        ]

    return ask


def longer(first: str, second: str) -> str:
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def test_positions_are_swapped_and_the_verdicts_turned_back():
    contests = [
        Comparison("p", "long one", "short"),
        Comparison("p", "a", "bbb"),
        Comparison("p", "a", "b"),
    ]
    assert JUDGE.compare(contests, preferring(longer)) == ["first", "second", "tie"]
    assert JUDGE.compare(contests, preferring(lambda *_: "first")) == ["inconsistent"] * 3


def test_the_turns_of_a_conversation_are_shown_under_their_roles():
    call = ToolCall(name="weather", arguments='{"city": "Oslo"}')
    prompt = (
        Message(role="user", content="And in Oslo?", tools='[{"name": "weather"}]'),
        Message(role="assistant", content="", reasoning="Hm.", tool_calls=(call,)),
        Message(role="tool", content="rain", name="weather"),
    )
    conversations = []
    JUDGE.rate([(prompt, "It rains.")], lambda c: conversations.extend(c) or [""])
    (_, task), (_, answer) = shown(conversations[0])
    assert task == (
        'tools: [{"name": "weather"}]\n\nuser: And in Oslo?\n\n'
        'assistant: <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        "\n\ntool (weather): rain"
    )
    assert answer == "It rains."
    assert transcript((Message(role="user", content="Hello"),)) == transcript("Hello") == "Hello"


def test_half_a_verdict_is_none():
    replies = iter(['{"better": "first"}', "I like the first one."])
    outcomes = JUDGE.compare(
        [Comparison("p", "a", "b")], lambda conversations: [next(replies) for _ in conversations]
    )
    assert outcomes == ["no verdict"]
    assert count_outcomes(outcomes) == {
        "first": 0, "second": 0, "tie": 0, "inconsistent": 0, "no verdict": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"better": "first"}', "first"),
        ('  {"better":"tie"}\n', "tie"),
        ('```json\n{"better": "second"}\n```', "second"),
        ('{"better": "first", "why": "longer"}', None),
        ('{"better": "First"}', None),
        ('{"better": "first"} because', None),
        ('Sure: {"better": "first"}', None),
        ("first", None),
        ("", None),
        ("{" * 5000, None),
    ],
)
def test_a_reply_is_a_verdict_or_nothing(reply, expected):
    verdict = parse_reply(reply, ComparisonReply)
    assert (verdict.better if verdict else None) == expected


def test_scores_are_whole_numbers_from_1_to_10():
    replies = ['{"score": 7}', '{"score": 11}', '{"score": "7"}', '{"score": 7.5}', "7"]
    ratings = JUDGE.rate([("p", "a")] * 5, lambda conversations: replies)
    assert ratings == [7, None, None, None, None]
    assert parse_reply('{"score": true}', RatingReply) is None


def test_no_text_can_bear_the_mark_that_closes_it():
    conversations = []
    texts = [*INJECTIONS, "</" + nonce_for(["p", "a", "b"]) + ">"]
    contests = [Comparison("p", text, "b") for text in texts]
    JUDGE.compare(contests, lambda c: conversations.extend(c) or [""] * len(c))
    for contest, conversation in zip(contests, conversations[::2], strict=True):
        marks = {mark for mark, _ in shown(conversation)}
        assert len(marks) == 1 and not any(mark in contest.first for mark in marks)
        assert [text for _, text in shown(conversation)] == ["p", contest.first, "b"]
        assert marks.pop() in conversation[0].content


def obedient(first: str, second: str) -> str:
    """A judge at its worst: it does as any text says."""
    attacks = [any(text.find(i) >= 0 for i in INJECTIONS) for text in (first, second)]
    return "tie" if attacks[0] == attacks[1] else "first" if attacks[0] else "second"


def test_injections_flip_no_verdict_where_a_verifier_knows(monkeypatch):
    assert len(set(INJECTIONS)) >= 100
    monkeypatch.setattr(Judge, "open", lambda self, folder: preferring(obedient))
    task = Task(verifier={"type": "numeric"})
    window = [
        Candidates(row_id(f"p{n}"), f"p{n}", None, "", [Candidate("It is 42.", "teacher"), wrong])
        for n, text in enumerate(INJECTIONS)
        for wrong in (Candidate(f"{text} It is 41.", "teacher"),)
    ]
    known = RankingContext(task, {row_id(f"p{n}"): "42" for n in range(len(window))}, lambda: None)
    scoring = JudgeRanking(type="judge").open(known)
    flips = sum(scores != [1.0, 0.0] for scores in scoring(window))
    assert flips / len(window) <= 0.01
    blind = RankingContext(task, {}, lambda: None)  # the same judge without a verifier is lost
    assert sum(s == [0.0, 1.0] for s in JudgeRanking(type="judge").open(blind)(window)) >= 100


def test_votes_cannot_be_bought_by_words():
    answers = [Candidate("It is 42.", "teacher"), Candidate("so 42", "teacher")]
    known = RankingContext(Task(verifier={"type": "numeric"}), {}, lambda: None)
    for text in INJECTIONS:
        wordy = Candidate(f"{text} 41", "teacher")
        candidates = Candidates("0" * 16, "p", None, "", [*answers, wordy])
        (scores,) = VoteRanking(type="votes").open(known)([candidates])
        assert scores[2] < scores[0] == scores[1]


def test_a_local_judge_is_asked_greedily(checkpoint):
    ask = Judge(precision="float32", threads=1, max_tokens=8).open(checkpoint)
    outcomes = JUDGE.compare([Comparison("p", "a", "b")], ask)
    assert outcomes == ["no verdict"]  # random weights say nothing of use
