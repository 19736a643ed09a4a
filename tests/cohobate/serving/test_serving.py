"""A served checkpoint, as the openai client and as another round's teacher see it."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends.openai import OpenAI
from cohobate.backends.replies import best_choice
from cohobate.backends.served_store import WITHOUT
from cohobate.backends.settings import GenerateParams
from cohobate.backends.token_names import TokenIds, bytes_name
from cohobate.data.messages import Message
from cohobate.data.records import (
    ANSWER_SIGNALS,
    UNLABELLED,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.errors import UserError
from cohobate.evaluation.model_under_test import ModelUnderTest, open_model
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.models.token_bytes import bytes_by_id
from cohobate.serving import openai_api
from cohobate.serving.app import make_app
from cohobate.serving.batched_model import BatchedModel
from cohobate.teachers.signal_store.missing import MissingRow
from flows import serve_cli
from tasks.generate.stage import run as generate
from tests.served_model import publish_address

PROMPTS = ["Definition: a small plant", "Definition: a small animal", "Category: a person"]


@pytest.fixture
def address(checkpoint: Path) -> Iterator[str]:
    """Where the checkpoint is served."""
    with served(checkpoint) as url:
        yield url


@contextmanager
def served(checkpoint: Path) -> Iterator[str]:
    import uvicorn

    app = make_app(BatchedModel(open_model(checkpoint, "float32")), "student")
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


def test_the_openai_client_gets_the_answers_of_the_model(address: str, checkpoint: Path) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["student"]
    tested = open_model(checkpoint, "float32")
    expected = {n: one.text for n, one in tested.answers(PROMPTS, Decoding(max_tokens=6))}

    def complete(prompt: str) -> str:
        reply = client.completions.create(model="any", prompt=prompt, max_tokens=6)
        assert reply.usage.completion_tokens <= 6 and reply.usage.prompt_tokens > 3
        return reply.choices[0].text

    with ThreadPoolExecutor(3) as threads:  # together: they share batches
        assert [*threads.map(complete, PROMPTS * 4)] == [expected[n] for n in range(3)] * 4
    together = client.completions.create(model="any", prompt=PROMPTS, max_tokens=6)
    assert [choice.text for choice in together.choices] == [expected[n] for n in range(3)]


def test_conversations_samples_and_streams(address: str) -> None:
    import openai

    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    turns = [{"role": "user", "content": [{"type": "text", "text": "a plant"}]}]
    chat = client.chat.completions.create
    greedy = chat(model="m", messages=turns, max_tokens=8).choices[0].message.content
    stream = chat(model="m", messages=turns, max_tokens=8, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in stream) == greedy
    drawn = [
        [
            choice.message.content
            for choice in chat(
                model="m", messages=turns, max_tokens=8, temperature=1, n=4, seed=seed
            ).choices
        ]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) > 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text"),
        ({"messages": [{"role": "user", "content": "a"}], "tools": [1]}, "tools is not served"),
        ({"messages": [{"role": "user", "content": "a"}], "max_tokens": 300}, "context of 256"),
        ({"messages": [{"role": "user", "content": "a"}], "temperature": -1}, "temperature"),
    ],
)
def test_what_is_not_served_is_refused_by_name(address: str, body: dict, message: str) -> None:
    import httpx

    reply = httpx.post(f"{address}/chat/completions", json=body)
    assert reply.status_code == 400 and message in reply.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_log_probabilities_are_those_of_a_pass_over_the_answer(
    address: str, checkpoint: Path, kind: str
) -> None:
    import httpx
    import torch

    tested = open_model(checkpoint, "float32")
    turns = [{"role": "user", "content": "a plant"}]
    if kind == "chat":
        body = {"messages": turns, "logprobs": True, "top_logprobs": 3}
        path, prompt = "chat/completions", (Message(role="user", content="a plant"),)
    else:
        path, prompt, body = "completions", PROMPTS[0], {"prompt": PROMPTS[0], "logprobs": 3}
    for more in ({}, {"temperature": 1.0, "seed": 3}):
        reply = httpx.post(f"{address}/{path}", json=body | {"max_tokens": 8} | more).json()
        tokens = best_choice(reply).tokens
        assert 1 < len(tokens) <= 8
        names = TokenIds(tested.tokenizer)
        ids = [names.id_of(name) for name, _, _ in tokens]
        (start,) = tested.prompt_ids([prompt])
        logits_SV = tested.model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1]
        logp_SV = logits_SV[:, : names.size].log_softmax(-1)
        for logp_V, token, (_, logprob, others) in zip(logp_SV, ids, tokens, strict=True):
            assert logprob == pytest.approx(float(logp_V[token]), abs=1e-4)
            assert [*others.values()] == pytest.approx(logp_V.topk(3).values.tolist(), abs=1e-4)
            assert more or max(others, key=others.__getitem__) == names_of(tested, token)


def names_of(tested: ModelUnderTest, token: int) -> str:
    return bytes_name(bytes_by_id(tested.tokenizer)[token])


def test_a_served_model_teaches_by_its_answers_and_their_distributions(
    model: Any, tokenizer: Any, project: Path
) -> None:
    # of random weights, but of whole words: its texts are the tokens that it generated
    words = [n for token, n in tokenizer.get_vocab().items() if len(token) > 4 and token[0] == "Ġ"]
    allowed = {*words, tokenizer.eos_token_id}
    model.generation_config.suppress_tokens = [*({*range(len(tokenizer))} - allowed)]
    assert len(allowed) > 4
    checkpoints.save(model, tokenizer, project / "words", {})
    rows = [Row(id=row_id(f"{p} {n}"), prompt=f"{p} {n}") for p in PROMPTS for n in range(8)]
    write_rows(UNLABELLED, rows)
    decoding = Decoding(max_tokens=8, temperature=1)
    backend = OpenAI(type="openai", api="completions")
    with served(project / "words") as url:
        publish_address(url, tokenizer, model="student", top_logprobs=4)
        generate("main", GenerateParams(backend=backend, decoding=decoding))
    figures = json.loads((ANSWER_SIGNALS / "main/summary.json").read_text())
    without = [row.reason for row in read_rows(ANSWER_SIGNALS / "main" / WITHOUT, MissingRow)]
    # all that the model ended itself, the closing token included
    assert {*without} <= {"the answer is cut off"} and "closing_tokens_assumed" not in figures
    assert 0 < figures["rows"] == len(rows) - len(without)


def test_log_probabilities_are_refused_where_there_are_none(address: str) -> None:
    import httpx

    body = {"prompt": PROMPTS[0], "max_tokens": 4, "logprobs": 21}
    reply = httpx.post(f"{address}/completions", json=body)
    assert reply.status_code == 400 and "logprobs" in reply.json()["error"]["message"]
    reply = httpx.post(f"{address}/completions", json=body | {"logprobs": 1, "stop": "a"})
    assert "logprobs are not served with stop" in reply.json()["error"]["message"]
    reply = httpx.post(f"{address}/completions", json=body | {"logprobs": None})
    assert reply.json()["choices"][0]["logprobs"] is None


def test_an_answer_ends_before_a_text_to_stop_at(address: str) -> None:
    import httpx

    body = {"prompt": PROMPTS[0], "max_tokens": 12}
    whole = httpx.post(f"{address}/completions", json=body).json()["choices"][0]["text"]
    stop = whole[3:5]
    reply = httpx.post(f"{address}/completions", json=body | {"stop": [stop]}).json()
    assert reply["choices"][0]["text"] == whole[: whole.index(stop)]
    assert reply["choices"][0]["finish_reason"] == "stop"


def test_developer_is_what_newer_clients_call_the_system() -> None:
    turns = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "a"}]
    query = openai_api.chat_query({"messages": turns})
    assert [message.role for message in query.prompts[0]] == ["system", "user"]


def test_models_of_a_project_by_name(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(
        "evaluate: {student: kd, baseline: baseline, teacher: main}\n"
    )
    with pytest.raises(UserError, match="no model 'student'"):
        serve_cli.folder_of("student", tmp_path)
    for folder in ("train/kd/seed-1", "train/baseline/seed-2", "adapt/main"):
        (tmp_path / "models" / folder).mkdir(parents=True)
        (tmp_path / "models" / folder / "config.json").write_text("{}")
    folders = {
        name: serve_cli.folder_of(name, tmp_path).relative_to(tmp_path / "models").as_posix()
        for name in ("student", "kd", "baseline", "teacher")
    }
    assert folders == {
        "student": "train/kd/seed-1",
        "kd": "train/kd/seed-1",
        "baseline": "train/baseline/seed-2",
        "teacher": "adapt/main",
    }
