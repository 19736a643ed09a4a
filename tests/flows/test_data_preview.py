"""The command `cohobate data`: what a file would become, in and outside a project."""

import json
from pathlib import Path

import pytest

from tests.tiny_project import run

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def turn(role: str, content: str, **others: object) -> dict:
    return {"role": role, "content": content, **others}


CHATS = [
    {"messages": [turn("user", "a"), turn("assistant", "b")]},
    {"messages": [turn("user", n) if n in "ac" else turn("assistant", n) for n in "abcd"]},
    {"messages": [turn("user", "a"), turn("assistant", "b")]},
    {"conversations": [{"from": "human", "value": "e"}, {"from": "gpt"}]},
    {"conversations": [{"from": "human", "value": "f"}, {"from": "gpt", "value": "g"}]},
    {"messages": [turn("user", "h")], "tools": TOOLS},
    {"messages": [turn("user", "i"), turn("robot", "j")]},
]


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path) -> Path:
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    return tmp_path


def preview(folder: Path, checkpoint: Path, *options: str) -> dict:
    done = run(folder, "cohobate", "data", *options, "--model", str(checkpoint), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_a_file_would_become(folder: Path, checkpoint: Path) -> None:
    figures = preview(folder, checkpoint, "chats.jsonl", "--learn", "all", "--rows", "2")
    assert (figures["records"], figures["usable"]) == (7, 5)
    assert figures["formats"] == {"chat": 4, "ShareGPT": 1}
    assert figures["counts"] == {
        "conversations": 5,
        "learnt at several turns": 1,
        "that repeat a prompt": 1,
        "with an answer": 4,
        "with tools": 1,
    }
    reasons = {one["reason"]: one for one in figures["unusable"]}
    assert reasons["ShareGPT turn 2 has no 'value'"]["count"] == 1
    assert reasons["ShareGPT turn 2 has no 'value'"]["example"].startswith("chats.jsonl, line 4:")
    first, second = figures["rows"]
    assert first["text"] == "<|user|>a<|end|><|assistant|>[[b<|end|>]]"
    assert second["text"].count("[[") == 2 and second["row"]["learn"] == "all"
    assert figures["tokens"]["rows"] == 4 and figures["tokens"]["longest"] == second["tokens"]
    (refusal,) = figures["tokens"]["refused"]
    assert refusal.startswith("the chat template leaves the tools out; fix: ")


def test_the_answer_alone_is_marked_by_default(folder: Path, checkpoint: Path) -> None:
    done = run(folder, "cohobate", "data", "*.jsonl", "--model", str(checkpoint))
    assert done.returncode == 0, done.stderr
    assert "5 of 7 records can be used" in done.stdout
    assert "<|user|>a<|end|><|assistant|>b<|end|><|user|>c<|end|><|assistant|>[[d" in done.stdout
    assert "1 x turn 2 is by 'robot', which is not a known role" in done.stdout


def test_columns_of_no_known_format_need_a_template(folder: Path, checkpoint: Path) -> None:
    (folder / "own.csv").write_text("frage,antwort\nWarum?,Darum.\n")
    refused = run(folder, "cohobate", "data", "own.csv")
    assert refused.returncode == 1 and "no record can be used" in refused.stderr
    assert "unknown format (columns: antwort, frage); set collect.template" in refused.stdout
    template = '{"prompt": "Q: {frage}\\nA:", "answer": " {antwort}"}'
    figures = preview(folder, checkpoint, "own.csv", "--template", template)
    assert figures["rows"][0]["text"] == "Q: Warum?\nA:[[ Darum.<|end|>]]"
    assert figures["formats"] == {"template": 1}


def test_a_wrong_name_is_said_without_a_traceback(tmp_path: Path) -> None:
    for name, message in (("no.jsonl", "file not found"), ("", "no file is named")):
        done = run(tmp_path, "cohobate", "data", *([name] if name else []))
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    done = run(tmp_path, "cohobate", "data", "book.xlsx")
    assert done.returncode == 2 and "a spreadsheet" in done.stderr


def test_without_a_file_it_is_the_source_of_the_project(folder: Path, checkpoint: Path) -> None:
    (folder / "params.yaml").write_text(
        "collect: {source: {type: files, path: chats.jsonl}, learn: all}\n"
        f"teachers: {{main: {{model: {checkpoint}}}}}\n"
    )
    done = run(folder, "cohobate", "data", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["model"] == str(checkpoint) and figures["usable"] == 5
    assert figures["counts"]["learnt at several turns"] == 1


def test_several_sources_take_turns(folder: Path, checkpoint: Path) -> None:
    (folder / "math.csv").write_text("question,answer\n1 + 1?,2\n2 + 2?,4\n")
    (folder / "params.yaml").write_text(
        "collect:\n"
        "  source: {type: several, path: data/sources}\n"
        "  sources:\n"
        "    chat: {source: {type: files, path: chats.jsonl}, learn: all}\n"
        "    math: {source: {type: files, path: math.csv}}\n"
        f"teachers: {{main: {{model: {checkpoint}}}}}\n"
    )
    figures = preview(folder, checkpoint, "--rows", "3")
    assert figures["formats"] == {
        "chat: chat": 4,
        "chat: ShareGPT": 1,
        "math: question and answer": 2,
    }
    assert [row["format"].partition(":")[0] for row in figures["rows"]] == ["chat", "math", "chat"]
