"""A hub on loopback: folders of this machine under `owner/name`, at one commit, to be read.

It speaks what huggingface_hub and datasets ask of the real one: what is in a repository, where its
files lie, and the files, whole or in part. `requests` lists what was sent to it.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0" * 20


class LoopbackHub(ThreadingHTTPServer):
    """Repositories by what they are and are called: `models/org/tiny`, `datasets/org/questions`."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repositories, self.requests = repositories, list[str]()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is set to."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(repositories: dict[str, Path]) -> Iterator[LoopbackHub]:
    """Serve within the block."""
    server = LoopbackHub(repositories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        folder, rest_of_path = self._found()
        if folder is None or not rest_of_path.startswith("paths-info/"):
            return self._refuse()
        paths = json.loads(body)["paths"]
        return self._say([_entry(folder, path) for path in paths if (folder / path).exists()])

    def do_GET(self) -> None:
        folder, rest_of_path = self._found()
        verb, _, rest = rest_of_path.partition("/")
        commit, _, path = rest.partition("/")
        if folder is None or (commit and commit not in {COMMIT, "main"}):
            return self._refuse()
        if verb == "resolve":
            return self._file(folder / path)
        if verb == "tree":
            return self._say([_entry(folder, name) for name in _names(folder)])
        siblings = [{"rfilename": name} for name in _names(folder)]
        return self._say({"id": "-", "sha": COMMIT, "siblings": siblings, "private": False})

    def _found(self) -> tuple[Path | None, str]:
        """Return the folder of the repository that is asked for, and what of it."""
        self.server.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path).removeprefix("/api").strip("/")
        if not path.startswith(("models/", "datasets/")):
            path = f"models/{path}"  # a model's files lie at the root
        kind, owner, name, *rest = [*path.split("/"), "", ""]
        return self.server.repositories.get(f"{kind}/{owner}/{name}"), "/".join(rest).strip("/")

    def _file(self, path: Path) -> None:
        if not path.is_file():
            return self._refuse("EntryNotFound")
        whole = path.read_bytes()
        first, last = 0, len(whole) - 1
        if byte_range := self.headers["Range"]:
            start, _, end = byte_range.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        headers = {
            "ETag": f'"{_etag(path)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Range": f"bytes {first}-{last}/{len(whole)}",
        }
        return self._send(206 if byte_range else 200, whole[first : last + 1], headers)

    def _refuse(self, code: str = "RepoNotFound") -> None:
        self._send(404, b"{}", {"X-Error-Code": code})

    def _say(self, what: Any) -> None:
        self._send(200, json.dumps(what).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Stay silent."""


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def _entry(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
