"""Answers that other stages buy: what is missing is said in the terms of their params."""

import pytest

from cohobate.backends.openai import OpenAI
from cohobate.backends.settings import GenerateParams
from cohobate.backends.unloaded_teacher import buy_answers
from cohobate.data.records import Row, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from tests.loopback_teacher import LoopbackTeacher, answer_to, publish_address
from tests.odd_replies import ODD

ROWS = [Row(id=row_id(text), prompt=text) for text in ("one", "two", "three")]
HOW = Decoding(max_tokens=8)


def generate(**more):
    return GenerateParams(backend=OpenAI(type="openai", backoff=0.05), **more)


def test_a_limit_that_went_into_reasoning_is_the_one_of_the_evaluation(project):
    with LoopbackTeacher(odd=ODD["reasoning up to the limit"].make) as service:
        publish_address(service.url)
        with pytest.raises(UserError, match=r"3 of 3 .* raise evaluate.decoding.max") as error:
            buy_answers("main", generate(), ROWS, HOW, "test")
        assert "--set evaluate.decoding.max_tokens=" in error.value.fix
        none = buy_answers("main", generate(unanswered=1.0), ROWS, HOW, "test")
        assert [answer.finish for answer in none] == ["length"] * 3
        assert service.sent == 3  # the second time the refusals are remembered


def test_reasoning_is_apart_from_the_answer(project):
    with LoopbackTeacher(odd=ODD["think tags"].make) as service:
        publish_address(service.url)
        answers = buy_answers("main", generate(), ROWS, HOW, "test")
    assert [answer.text for answer in answers] == [answer_to(row.prompt) for row in ROWS]
    assert {answer.reasoning for answer in answers} == {"Hm."}
