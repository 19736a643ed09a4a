"""Keys, ledger lines and request bodies, byte for byte: an upgrade must not buy an answer again.

The literals were written by the release before the first rename of these modules. A change of one
of them means that every project that upgrades pays for its answers a second time.
"""

import json

import pytest

from cohobate.backends.ledger import _entries, _line
from cohobate.backends.openai import OpenAI
from cohobate.backends.openai_batch import OpenAIBatch
from cohobate.backends.requests import NoAnswer, answer_key
from cohobate.backends.run_teacher import make_request
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.data.messages import Message
from cohobate.data.records import Row
from cohobate.generation.requests import Answer, Decoding, Usage
from cohobate.models.number_formats import FORCED

GREEDY = Decoding(max_tokens=24)
SAMPLED = Decoding(max_tokens=24, temperature=0.7, top_p=0.9, seed=5)
ROW = Row(id="0123456789abcdef", prompt="a small rodent")
CHAT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="a small rodent é"),
)
WITH_LOGPROBS = {"logprobs": True, "top_logprobs": 3, "extra": {"reasoning_effort": "low"}}


@pytest.mark.parametrize(
    ("backend", "of_text", "of_chat"),
    [
        (
            Transformers(),
            "f4562f3978d91f6ecacb5f1cfeb06511",
            "616f91a43a36c2b3c2641ba27561a949",
        ),
        (
            Vllm(type="vllm"),
            "ae62beb6ff087aeb4ccfc8bc8d156e49",
            "cb86d7ebd5b7d449d5b5e28cb5300e96",
        ),
        (
            OpenAI(type="openai"),
            "3478206cea1b773e1b172ac9cd30a678",
            "235668010956a82403949f5f5ed5dc85",
        ),
        (
            OpenAIBatch(type="openai-batch"),
            "3478206cea1b773e1b172ac9cd30a678",
            "235668010956a82403949f5f5ed5dc85",
        ),
        (
            OpenAI(type="openai", **WITH_LOGPROBS),
            "ba0213b8eb608f61c99bf8ef59fd25f0",
            "a37821bfed5c0ff4c53d357618f7e322",
        ),
    ],
)
def test_the_key_of_a_request(backend, of_text, of_chat, monkeypatch):
    monkeypatch.setenv(FORCED, "float32")
    assert make_request(backend, GREEDY, ROW, ROW.prompt).key == of_text
    sampled = make_request(backend, SAMPLED, ROW, CHAT, 2)
    assert (sampled.key, sampled.draw) == (of_chat, "0123456789abcdef/2")


def test_the_key_of_a_service():
    expected = "f635ac3b76466100cd28da7d52b9dadf"
    assert answer_key("endpoint", "http://host/v1", "m", "r1") == expected


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (
            Answer(
                " animal é",
                "stop",
                -0.25,
                Usage(7, 3, 0.0125),
                ((" animal", -0.25, {" plant": -1.5}),),
                "Hm.",
                "odd",
            ),
            '{"bought": [7, 3, 0.0125], "finish": "stop", "key": "k", "left": 0, "logprob": -0.25,'
            ' "note": "odd", "reasoning": "Hm.", "text": " animal é", "tokens": [[" animal", -0.25,'
            ' {" plant": -1.5}]], "crc": 2321790843}\n',
        ),
        (
            Answer("x", "length", None),
            '{"finish": "length", "key": "k", "left": 0, "logprob": null, "text": "x", '
            '"crc": 1950566196}\n',
        ),
        (
            NoAnswer("the service filtered the answer", 0.01, "{}", True, "refused"),
            '{"cost": 0.01, "left": 0, "reason": "the service filtered the answer", "refused": true'
            ', "reply": "{}", "request": "k", "whole": true, "crc": 2734351988}\n',
        ),
        (
            NoAnswer("cut off", 0.5),
            '{"cost": 0.5, "left": 0, "reason": "cut off", "request": "k", "crc": 3067847056}\n',
        ),
    ],
)
def test_the_line_of_a_ledger(outcome, line):
    (entry,) = _entries("k", outcome)
    assert _line(entry | {"left": 0}) == line.encode()


@pytest.mark.parametrize(
    ("backend", "body"),
    [
        (
            OpenAI(type="openai"),
            '{"model": "m", "temperature": 0.7, "max_tokens": 24, "top_p": 0.9, "seed": 956126733, '
            '"messages": [{"role": "user", "content": "a small rodent"}]}',
        ),
        (
            OpenAI(
                type="openai",
                api="completions",
                logprobs=True,
                top_logprobs=2,
                max_tokens_key="max_completion_tokens",
            ),
            '{"model": "m", "temperature": 0.7, "max_completion_tokens": 24, "top_p": 0.9, '
            '"seed": 956126733, "prompt": "a small rodent", "logprobs": 2}',
        ),
        (
            OpenAIBatch(type="openai-batch", extra={"seed": None, "stop": ["x"]}, logprobs=True),
            '{"model": "m", "temperature": 0.7, "max_tokens": 24, "top_p": 0.9, "messages": '
            '[{"role": "user", "content": "a small rodent"}], "logprobs": true, "top_logprobs": 0, '
            '"stop": ["x"]}',
        ),
    ],
)
def test_the_body_of_a_request(backend, body):
    request = make_request(backend, SAMPLED, ROW, ROW.prompt, 1)
    assert json.dumps(backend.body("m", request, SAMPLED)) == body


def test_the_body_of_a_conversation():
    backend = OpenAI(type="openai")
    request = make_request(backend, GREEDY, ROW, CHAT)
    assert json.dumps(backend.body("m", request, GREEDY), ensure_ascii=False) == (
        '{"model": "m", "temperature": 0.0, "max_tokens": 24, "messages": [{"role": "system", '
        '"content": "Be brief."}, {"role": "user", "content": "a small rodent é"}]}'
    )
