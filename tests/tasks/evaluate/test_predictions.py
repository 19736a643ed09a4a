"""Predictions: the answer behind the reasoning is scored, calls of tools are part of it."""

import pytest

from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import Row
from cohobate.generation.requests import Answer
from cohobate.scoring.metrics import ExactMatch, VerifierAccuracy
from cohobate.scoring.verifiers import Task
from tasks.evaluate.predictions import Prediction, scored
from tasks.evaluate.run_models import _answered, _own_texts

METRICS = (VerifierAccuracy(), ExactMatch(type="exact_match"))
TURNS = (Message(role="user", content="x?", tools='[{"name": "f"}]'),)
CALL = ToolCall(name="f", arguments='{"x": 1}')
ROWS = [
    Row(id="a", prompt="2 + 2?", answer="4", reasoning="Two and two."),
    Row(id="b", prompt=TURNS, answer="", tool_calls=(CALL,)),
]


def predictions(verifier: str, row: Row, answer: Answer) -> Prediction:
    (one,) = scored([row], [answer], METRICS, Task(verifier={"type": verifier}))
    return one


@pytest.mark.parametrize(
    ("verifier", "row", "answer"),
    [
        ("numeric", ROWS[0], Answer("4", "stop", -0.1, reasoning="5? No.")),
        ("tool_calls", ROWS[1], Answer("", "stop", -0.1, tool_calls=(CALL,))),
    ],
)
def test_the_answer_is_scored_and_the_reasoning_is_beside_it(verifier, row, answer):
    prediction = predictions(verifier, row, answer)
    assert prediction.scores == {"verifier": 1.0, "exact_match": 1.0}
    assert (prediction.answer, prediction.reasoning) == (row.full_answer, answer.reasoning)


def test_a_call_in_the_students_own_syntax_is_right_by_the_verifier():
    own = Answer('{"name": "f", "parameters": {"x": 1}}', "stop", -0.1)
    assert predictions("tool_calls", ROWS[1], own).scores == {"verifier": 1.0, "exact_match": 0.0}


def test_a_models_own_text_has_its_own_reasoning_and_not_the_references(tokenizer):
    def own(**fields):
        return Prediction(id="a", scores={}, **({"answer": "5", "finish": "stop"} | fields))

    (answered,) = _answered(ROWS[:1], [own(reasoning="Hm.")])
    assert (answered.answer, answered.reasoning) == ("5", "Hm.")
    (plain,) = _answered(ROWS[:1], [own()])
    assert (plain.answer, plain.reasoning) == ("5", None)

    class Loaded:
        pass

    Loaded.tokenizer = tokenizer
    cut = own(answer="", reasoning="Hm, hm", finish="length")
    (text,) = _own_texts(Loaded, ROWS[:1], [cut])
    assert tokenizer.decode(text.completion_ids) == "<think>\nHm, hm"
