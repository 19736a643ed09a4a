"""Publishing: refused where it must be, and one commit where it may be."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cohobate import params
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.params import ParamsError
from tasks.export.adapter import adapter_of, write_repository
from tasks.export.push import Push
from tasks.preflight.references import check_references

FREE = {"main": {"licence": "Apache-2.0", "outputs_may_train": True}}
BOUND = {"main": {"licence": "Llama-2", "outputs_may_train": False}}


@pytest.fixture
def push(monkeypatch: pytest.MonkeyPatch) -> Push:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Push(repo="someone/student")


def test_terms_that_forbid_it_stop_a_push_even_if_acknowledged(push: Push) -> None:
    bound = {"main": BOUND["main"] | {"acknowledge": "for research"}}
    with pytest.raises(UserError, match=r"a student of main .Llama-2. is not published"):
        push.refuse(bound, gate_passed=True)


def test_a_student_that_failed_the_gate_is_not_published(push: Push) -> None:
    with pytest.raises(UserError, match="gate was not passed"):
        push.refuse(FREE, gate_passed=False)


def test_the_token_comes_from_the_environment_alone(
    push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    push.refuse(FREE, gate_passed=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="no token for the hub in the environment"):
        push.refuse(FREE, gate_passed=True)
    with pytest.raises(ParamsError, match=r"push.token is not a known key"):
        params.validated(Push, {"repo": "a/b", "token": "hf_x"}, "push")


class Hub(BaseHTTPRequestHandler):
    """The few routes of a hub that a commit of small files takes."""

    files: dict[str, dict[str, bytes]]
    """By the kind and name of the repository, such as `models/someone/student`."""
    created: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_secret":
            return self._say(401, {"error": "who are you"})
        if self.path == "/api/validate-yaml":  # of the card's front matter
            return self._say(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self._say(200, {"url": "http://127.0.0.1/someone/student"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._say(200, {"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]})  # fmt: skip
        lines = [json.loads(line)["value"] for line in body.splitlines()]
        repository = self.path.removeprefix("/api/").partition("/commit/")[0]
        self.files.setdefault(repository, {}).update(
            (line["path"], base64.b64decode(line["content"])) for line in lines if "content" in line
        )
        return self._say(
            200,
            {
                "commitOid": "a" * 40,
                "commitUrl": f"http://{self.headers['Host']}/someone/student/commit/{'a' * 40}",
            },
        )

    def do_GET(self) -> None:
        self._say(200, {"id": "someone/student", "siblings": [], "sha": "a" * 40})

    def _say(self, status: int, what: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(what).encode())

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files, Hub.created = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def upload(folder: Path, hub: str, token: str, **also: str) -> subprocess.CompletedProcess:
    """In a process of its own: the hub's address is read when its library is imported."""
    code = (
        "from pathlib import Path; from tasks.export.push import Push;"
        f"folder = Path({str(folder)!r});"
        "forms = [folder / name for name in ('safetensors', 'gguf-f16')];"
        f"push = Push(repo='someone/student', **{also!r});"
        "push.upload(forms, folder / 'data', folder / 'lora' if push.adapter else None)"
    )
    for name in ("safetensors", "gguf-f16", "data", "lora"):
        (folder / name).mkdir()
        (folder / name / "README.md").write_text(f"# {name}\n")
    (folder / "gguf-f16/model.gguf").write_bytes(b"\0weights")
    online = {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | online | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_forms_data_and_adapter_go_to_a_repository_each(tmp_path: Path, hub: str) -> None:
    done = upload(tmp_path, hub, "hf_secret", dataset="someone/data", adapter="someone/lora")
    assert done.returncode == 0, done.stderr
    assert {one["visibility"] for one in Hub.created} == {"private"}
    assert Hub.files == {
        "models/someone/student": {
            "README.md": b"# safetensors\n",
            "gguf-f16/README.md": b"# gguf-f16\n",
            "gguf-f16/model.gguf": b"\0weights",
        },
        "datasets/someone/data": {"README.md": b"# data\n"},
        "models/someone/lora": {"README.md": b"# lora\n"},
    }


def test_what_has_no_repository_stays_here(tmp_path: Path, hub: str) -> None:
    done = upload(tmp_path, hub, "hf_secret")
    assert done.returncode == 0, done.stderr
    assert [*Hub.files] == ["models/someone/student"]


def test_a_refusal_is_a_readable_error_without_the_token(tmp_path: Path, hub: str) -> None:
    done = upload(tmp_path, hub, "hf_wrong")
    assert done.returncode == 1
    assert "cannot publish on the hub" in done.stderr
    assert "hf_wrong" not in done.stderr


def test_a_push_names_a_repository_and_two_kinds_of_models_share_none() -> None:
    for wrong, why in (
        ({}, "name a repository"),
        ({"repo": "a/b", "adapter": "a/b"}, "need a repository each"),
    ):
        with pytest.raises(ParamsError, match=why):
            params.validated(Push, wrong, "push")


def test_an_adapter_that_is_not_kept_is_refused_before_the_round() -> None:
    document = {
        "evaluate": {"student": "kd"},
        "train": {"kd": {"adapter": {"type": "lora"}}},
        "export": {"push": {"adapter": "someone/lora"}},
    }
    with pytest.raises(UserError, match="keeps no adapter") as caught:
        check_references(document)
    assert caught.value.fix is not None
    assert "train.kd.adapter={type: lora, save_adapter: true}" in caught.value.fix
    document["train"]["kd"]["adapter"]["save_adapter"] = True
    check_references(document)


def test_an_adapters_repository_is_opened_by_peft(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.chdir(tmp_path)
    trained = Path("models/train/kd/seed-1")
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    updated = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2))
    updated.peft_config["default"].base_model_name_or_path = str(checkpoint)
    updated.save_pretrained("models/train/kd/adapter/seed-1")
    files = SimpleNamespace(
        models={"student": {"type": "teacher_layers"}},
        evaluated={"test_rows": 40, "gain": 0.1, "gain_low": 0.0, "gain_high": 0.2},
        about_data={
            "teachers": {"main": FREE["main"] | {"model": "someone/teacher", "acknowledge": ""}},
            "licence_tag": "apache-2.0",
            "collected": {"source": "rows", "licence": "CC0"},
        },
    )
    files.about_data["teachers"]["main"]["revision"] = ""
    init_student: Any = SimpleNamespace(vocabulary="whole")
    adapter = adapter_of(trained, files, init_student)  # type: ignore[arg-type]
    row = Row(id="0" * 16, prompt="Hi", answer=" you")
    exported: Any = SimpleNamespace(example=row, seed=1)
    Path("out").mkdir()
    write_repository(adapter, "someone/lora", Path("out"), exported, files)  # type: ignore[arg-type]
    card = Path("out/README.md").read_text()
    assert 'base, where = "someone/lora", {"subfolder": "base"}' in card
    assert str(tmp_path) not in Path("out/adapter_config.json").read_text()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("out/base"), "out")
    assert any("lora_A" in name for name in model.state_dict())
    # a model of the hub as it is stays there
    files.models = {"student": {"type": "pretrained", "model": "org/small", "revision": "c0" * 20}}
    config = Path("models/train/kd/adapter/seed-1/adapter_config.json")
    config.write_text(config.read_text().replace(str(checkpoint), "models/init_student"))
    adapter = adapter_of(trained, files, init_student)  # type: ignore[arg-type]
    assert (adapter.base_name, adapter.revision) == ("org/small", "c0" * 20)
    init_student.vocabulary = "used"
    with pytest.raises(UserError, match="is not here"):
        adapter_of(trained, files, init_student)  # type: ignore[arg-type]
