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
from typing import Any

import pytest

from cohobate import params
from cohobate.errors import UserError
from cohobate.params import ParamsError
from tasks.export.push import Push

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

    files: dict[str, bytes]
    created: dict[str, Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_secret":
            return self._say(401, {"error": "who are you"})
        if self.path == "/api/validate-yaml":  # of the card's front matter
            return self._say(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            type(self).created = json.loads(body)
            return self._say(200, {"url": "http://127.0.0.1/someone/student"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self._say(200, {"files": [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]})  # fmt: skip
        lines = [json.loads(line)["value"] for line in body.splitlines()]
        type(self).files |= {
            line["path"]: base64.b64decode(line["content"]) for line in lines if "content" in line
        }
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
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def upload(folder: Path, hub: str, token: str) -> subprocess.CompletedProcess:
    """In a process of its own: the hub's address is read when its library is imported."""
    code = (
        "from pathlib import Path; from tasks.export.push import Push;"
        f"forms = [Path({str(folder)!r}) / name for name in ('safetensors', 'gguf-f16')];"
        "Push(repo='someone/student').upload(forms)"
    )
    for name in ("safetensors", "gguf-f16"):
        (folder / name).mkdir()
        (folder / name / "README.md").write_text(f"# {name}\n")
    (folder / "gguf-f16/model.gguf").write_bytes(b"\0weights")
    online = {"HF_ENDPOINT": hub, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | online | {"HF_HUB_DISABLE_XET": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_first_form_goes_to_the_root_and_others_to_folders(tmp_path: Path, hub: str) -> None:
    done = upload(tmp_path, hub, "hf_secret")
    assert done.returncode == 0, done.stderr
    assert Hub.created["visibility"] == "private"
    assert Hub.files == {
        "README.md": b"# safetensors\n",
        "gguf-f16/README.md": b"# gguf-f16\n",
        "gguf-f16/model.gguf": b"\0weights",
    }


def test_a_refusal_is_a_readable_error_without_the_token(tmp_path: Path, hub: str) -> None:
    done = upload(tmp_path, hub, "hf_wrong")
    assert done.returncode == 1
    assert "cannot publish on the hub" in done.stderr
    assert "hf_wrong" not in done.stderr
