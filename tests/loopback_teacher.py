"""An OpenAI-compatible service on loopback that misbehaves on purpose, and counts.

In a test: `with LoopbackTeacher(fault="500", share=0.5) as service: ...`. As a process of its own,
which outlives a client that is killed: `python -m tests.loopback_teacher PORT LOG SECONDS`.
"""

import asyncio
import contextlib
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

from cohobate.data.records import ADAPT, ENDPOINT, UNLABELLED, Row, row_id, write_json, write_rows
from cohobate.models import checkpoints

FAULTS = (
    "429 seconds", "429 date", "429 long", "quota", "401", "500",
    "reset", "half a body", "bad JSON", "empty", "slow-loris", "timeout",
)  # fmt: skip
KEY = "sk-secret-of-the-tests"
Reply = tuple[int, dict[str, str], bytes]


def answer_to(prompt: str, seed: int | None = None) -> str:
    digest = hashlib.blake2b(f"{prompt}/{seed}".encode(), digest_size=6).hexdigest()
    return f"answer {digest}"


class LoopbackTeacher:
    """The service: `fault` strikes a seeded share of the prompts, `times` times each."""

    def __init__(
        self, fault: str = "", share: float = 1.0, times: int = 10**9, *,
        seconds: float = 0.0, log: Path | None = None, port: int = 0, prices: bool = True,
        odd: Callable[[dict[str, Any]], Reply] | None = None,
    ) -> None:  # fmt: skip
        """`odd` makes the reply to the chosen prompts out of the good one."""
        self.fault, self.share, self.times, self.seconds = fault, share, times, seconds
        self.log, self.port, self.prices, self.odd = log, port, prices, odd
        self.tries: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.struck = self.in_flight = self.most_in_flight = 0
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.files_made = 0
        self.batches: dict[str, dict[str, Any]] = {}
        self.polls_until_done = 2
        self.batch_failures: Counter[str] = Counter()
        self.batch_fate = "completed"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def sent(self) -> int:
        return sum(self.tries.values())

    def __enter__(self) -> "LoopbackTeacher":
        started = threading.Event()
        self.loop = asyncio.new_event_loop()

        def serve() -> None:
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(self.start())
            started.set()
            self.loop.run_forever()
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)

    async def start(self) -> None:
        server = await asyncio.start_server(self.connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            async for method, path, headers, body in requests_of(reader):
                self.headers.append(headers)
                self.paths.append(path)
                bare = path.partition("?")[0]
                if bare.endswith("completions"):
                    if not await self.completion(json.loads(body), bare, writer):
                        break
                else:
                    writer.write(as_http(self.batch_api(method, path, headers, body)))
                await writer.drain()
        writer.close()

    async def completion(self, request: dict, path: str, writer: asyncio.StreamWriter) -> bool:
        """Answer or misbehave; say whether the connection is still of use."""
        prompt = text_of(request)
        self.bodies.append(request)
        self.tries[prompt] += 1
        self.note("sent", prompt)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
            chosen = random.Random(f"{self.fault}/{prompt}").random() < self.share
            if (self.fault or self.odd) and chosen and self.tries[prompt] <= self.times:
                self.struck += 1
                if self.odd:
                    writer.write(as_http(self.odd(json.loads(self.good(request, path)))))
                    return True
                return await self.misbehave(self.good(request, path), writer)
            self.answered[prompt] += 1
            self.note("answered", prompt)
            writer.write(as_http((200, {}, self.good(request, path))))
            return True
        finally:
            self.in_flight -= 1

    async def misbehave(self, good: bytes, writer: asyncio.StreamWriter) -> bool:
        if self.fault in ("reset", "timeout", "slow-loris", "half a body"):
            await self.break_off(good, writer)
            return False
        date = {
            "retry-after": formatdate(time.time() + 1, usegmt=True),
            "date": formatdate(usegmt=True),
        }
        wrong_key = {
            "error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}
        }
        no_money = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
        busy = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
        silent = json.loads(good)
        silent["choices"][0]["message"]["content"] = ""
        writer.write(as_http({
            "429 seconds": (429, {"retry-after": "0.2"}, json.dumps(busy).encode()),
            "429 date": (429, date, json.dumps(busy).encode()),
            "429 long": (429, {"retry-after": "86400"}, json.dumps(busy).encode()),
            "quota": (429, {"retry-after": "1"}, json.dumps(no_money).encode()),
            "401": (401, {}, json.dumps(wrong_key).encode()),
            "500": (500, {}, b"<html>Internal Server Error</html>"),
            "bad JSON": (200, {}, good.replace(b":", b"=", 3)),
            "empty": (200, {}, json.dumps(silent).encode() if self.struck % 2 else b""),
        }[self.fault]))  # fmt: skip
        return True

    async def break_off(self, good: bytes, writer: asyncio.StreamWriter) -> None:
        if self.fault == "reset":
            writer.transport.abort()
        elif self.fault == "timeout":
            await asyncio.sleep(30)
        elif self.fault == "half a body":
            writer.write(as_http((200, {}, good))[: -len(good) // 2])
            await writer.drain()
        else:  # a byte now and then: no timeout between bytes ever strikes
            for byte in as_http((200, {}, good)):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)

    def good(self, request: dict, path: str) -> bytes:
        prompt = text_of(request)
        text = answer_to(prompt, request.get("seed"))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
        tokens = [{"token": t, "logprob": -0.25, "top_logprobs": [{"token": t, "logprob": -0.25}]}
                  for t in text.split()]  # fmt: skip
        if path.endswith("chat/completions"):
            choice["message"] = {"role": "assistant", "content": text}
            choice["logprobs"] = {"content": tokens} if request.get("logprobs") else None
        else:
            choice["text"] = " " + text
            names = [t["token"] for t in tokens]
            choice["logprobs"] = {"tokens": names, "token_logprobs": [-0.25] * len(names)}
        reply = {
            "id": "x",
            "object": "chat.completion",
            "model": request["model"],
            "choices": [choice],
        }
        if self.prices:
            reply["usage"] = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return json.dumps(reply).encode()

    def batch_api(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """/files and /batches, as far as a client of batches needs them."""
        parts = path.split("?", maxsplit=1)[0].strip("/").split("/")[1:]
        if parts == ["files"]:
            name = self.new_file()
            self.files[name] = multipart_file(headers["content-type"], body)
            fields = {"object": "file", "purpose": "batch", "bytes": len(body), "created_at": 0}
            return as_json({"id": name, "filename": "asks.jsonl", "status": "processed", **fields})
        if parts[0] == "files":
            gone = json.dumps({"error": {"message": "No such File object"}}).encode()
            return (200, {}, self.files[parts[1]]) if parts[1] in self.files else (404, {}, gone)
        if method == "POST" and parts == ["batches"]:
            request = json.loads(body)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {
                "id": name, "object": "batch", "status": "in_progress", "polls": 0,
                "endpoint": request["endpoint"], "completion_window": "24h", "created_at": 0,
                "input_file_id": request["input_file_id"], "metadata": request["metadata"],
            }  # fmt: skip
            return as_json(self.batches[name])
        if parts == ["batches"]:
            return as_json(
                {"object": "list", "data": list(self.batches.values()), "has_more": False}
            )
        batch = self.batches[parts[1]]
        batch["polls"] += 1
        if batch["polls"] >= self.polls_until_done and batch["status"] == "in_progress":
            self.finish(batch)
        return as_json(batch)

    def new_file(self) -> str:
        self.files_made += 1
        return f"file-{self.files_made}"

    def finish(self, batch: dict[str, Any]) -> None:
        """Write the output file, and the error file for a seeded share of the lines."""
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            prompt = text_of(request["body"])
            self.tries[prompt] += 1
            struck = random.Random(f"batch/{prompt}").random() < self.share
            if struck and self.odd and self.tries[prompt] <= self.times:
                self.struck += 1
                status, _, body = self.odd(
                    json.loads(self.good(request["body"], batch["endpoint"]))
                )
                response = {"status_code": status, "body": json.loads(body)}
                good.append({"custom_id": request["custom_id"], "response": response})
            elif struck and self.tries[prompt] <= self.times:
                error = {"status_code": 500, "body": {"error": {"message": "try again"}}}
                bad.append({"custom_id": request["custom_id"], "response": error})
            else:
                self.answered[prompt] += 1
                body = json.loads(self.good(request["body"], batch["endpoint"]))
                bought = {"status_code": 200, "body": body}
                good.append({"custom_id": request["custom_id"], "response": bought})
        batch["status"] = self.batch_fate
        for name, lines in (("output_file_id", good[::-1]), ("error_file_id", bad)):
            if lines:
                batch[name] = self.new_file()
                self.files[batch[name]] = "".join(json.dumps(o) + "\n" for o in lines).encode()

    def note(self, what: str, prompt: str) -> None:
        if self.log:
            with self.log.open("a") as file:
                file.write(json.dumps([what, prompt]) + "\n")


def publish_address(url: str, *, key: str = "", model: str = "large-1") -> None:
    """Write the teacher `main` of the current project as `adapt` does for an endpoint."""
    with checkpoints.staged(ADAPT / "main") as partial:
        address = {"url": url, "key": key, "model": model, "revision": ""}
        write_json(partial / ENDPOINT, address)


def write_prompts(count: int) -> list[str]:
    prompts = [f"What is {n}?" for n in range(count)]
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in prompts])
    return prompts


def text_of(request: dict[str, Any]) -> str:
    if "prompt" in request:
        return request["prompt"]
    return "\n".join(message["content"] for message in request["messages"])


async def requests_of(
    reader: asyncio.StreamReader,
) -> AsyncIterator[tuple[str, str, dict[str, str], bytes]]:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in head[1:] if h)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        yield method, path, headers, body


def as_http(reply: Reply) -> bytes:
    status, headers, body = reply
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


def as_json(value: Any) -> Reply:
    return 200, {}, json.dumps(value).encode()


def multipart_file(content_type: str, body: bytes) -> bytes:
    boundary = content_type.partition("boundary=")[2].encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise AssertionError("no file in the form")


if __name__ == "__main__":
    port, log, seconds = sys.argv[1:4]
    service = LoopbackTeacher(port=int(port), log=Path(log), seconds=float(seconds))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(service.start())
    loop.run_forever()
