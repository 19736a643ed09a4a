"""A server at PREFECT_API_URL that cannot be used: one message within seconds, with its fix."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import prefect
import pytest

from cohobate.errors import UserError
from flows import prefect_server
from tests.flows import quick_project
from tests.prefect_server import free_port
from tests.tiny_project import run


@contextmanager
def replying(status: int, body: str) -> Iterator[int]:
    """Serve the same reply to every request; yield the port."""

    class Reply(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not status:
                threading.Event().wait(3)
                return
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *words: object) -> None:
            """Keep the output of the tests clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Reply)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_server, "_TIMEOUT", 1.0)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_project.build(tmp_path_factory.mktemp("server"))


def refused(monkeypatch: pytest.MonkeyPatch, url: str) -> UserError:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(UserError) as error:
        prefect_server.check()
    return error.value


@pytest.mark.parametrize(
    ("status", "body", "what", "fix"),
    [
        (401, '{"detail": "no"}', "credentials", "PREFECT_API_AUTH_STRING"),
        (404, '{"detail": "no"}', "no Prefect API", "/api"),
        (200, "<html>a page</html>", "no Prefect API", "/api"),
        (200, '{"version": 3}', "no Prefect API", "/api"),
        (200, '"2.20.1"', "incompatible versions", "server's version"),
        (500, "{}", "HTTP 500", "that server's log"),
        (0, "", "within 1 s", "unset PREFECT_API_URL"),
    ],
)
def test_what_replies_is_refused_by_kind(
    monkeypatch: pytest.MonkeyPatch, status: int, body: str, what: str, fix: str
) -> None:
    with replying(status, body) as port:
        error = refused(monkeypatch, f"http://127.0.0.1:{port}")
    assert what in error.what and fix in error.fix
    assert error.where == f"PREFECT_API_URL=http://127.0.0.1:{port}"


def test_a_server_of_the_same_version_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with replying(200, json.dumps(prefect.__version__)) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        prefect_server.check()


def test_tls_at_a_server_without_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with replying(200, "{}") as port:
        error = refused(monkeypatch, f"https://127.0.0.1:{port}/api")
    assert f"export PREFECT_API_URL=http://127.0.0.1:{port}/api" in error.fix


@pytest.mark.parametrize("url", ["127.0.0.1:4200", "localhost", "4200"])
def test_what_is_no_url_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    assert "export PREFECT_API_URL=http" in refused(monkeypatch, url).fix


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:9", "socks5://me:secret@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    error = refused(monkeypatch, "http://prefect.example/api")
    assert "unset ALL_PROXY" in error.fix and "secret" not in str(error)


@pytest.mark.parametrize("command", [["run"], ["iterate"], ["trigger", "nightly"], ["ui"], ["up"]])
def test_every_command_says_in_three_lines_that_the_server_is_down(
    command: list[str], project: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = run(project, "cohobate", *command, PREFECT_API_URL=url, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 3, done.stderr
    assert "unset PREFECT_API_URL" in lines[2]
