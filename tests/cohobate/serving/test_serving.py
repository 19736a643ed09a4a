"""A served checkpoint, as the openai client and as another round's teacher see it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cohobate.errors import UserError
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.serving import openai_api
from cohobate.serving.app import make_app
from cohobate.serving.batched_model import BatchedModel
from flows import serve_cli

PROMPTS = ["Definition: a small plant", "Definition: a small animal", "Category: a person"]


@pytest.fixture
def address(checkpoint: Path) -> Iterator[str]:
    """Where the checkpoint is served."""
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
