"""A service on loopback over a model in this process, in the shapes of OpenAI, vLLM and SGLang.

It gives the log-probabilities of what it generates, and scores given text where the service that it
stands for does. `odd` changes replies; requests are counted by path.
"""

import base64
import json
import math
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cohobate.backends.token_names import bytes_name
from cohobate.data.messages import Message
from cohobate.data.records import ADAPT, ENDPOINT, write_json
from cohobate.data.tokenized import prompt_ids
from cohobate.models import checkpoints
from cohobate.models.token_bytes import _byte_letters

Kind = Literal["openai", "vllm", "sglang"]


class ServedModel:
    """The service."""

    def __init__(
        self, folder: Path, kind: Kind = "vllm", *, words: tuple[str, ...] = (),
        odd: Callable[[dict[str, Any], str], Any] | None = None,
    ) -> None:  # fmt: skip
        """`words`: tokens among which answers are chosen, so that text is canonical."""
        self.model, self.tokenizer = checkpoints.load(folder)
        self.kind, self.odd, self.name = kind, odd, "large-1"
        vocabulary = self.tokenizer.get_vocab()
        self.end = self.tokenizer.eos_token_id
        self.choices = [vocabulary[word] for word in words] + [self.end] if words else None
        self.requests: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.listed = 0
        """Requests for the list of models."""
        self._lock = threading.Lock()

    def __enter__(self) -> "ServedModel":
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._send(*outer.reply(self.path, body))

            def _send(self, status: int, reply: Any) -> None:
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_GET(self) -> None:
                owner = {"openai": "system"}.get(outer.kind, outer.kind)
                models = {"object": "list", "data": [{"id": outer.name, "owned_by": owner}]}
                outer.listed += 1
                paths = {"/inference/v1/generate": {}} if outer.kind == "vllm" else {}
                pages = {"/v1/models": models, "/openapi.json": {"paths": paths}}
                self._send(200 if self.path in pages else 404, pages.get(self.path, {}))

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def sent(self) -> int:
        return self.requests.total()

    def reply(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock, torch.no_grad():
            chosen = path == "/inference/v1/generate"
            scores = chosen or path == "/generate" or "prompt_logprobs" in body
            self.requests["score" if scores else "generate"] += 1
            self.bodies.append(body)
            if path == "/generate":
                if self.kind != "sglang":
                    return 404, {"detail": "Not Found"}
                reply = self._sglang(body)
            elif chosen:
                reply = self._candidates(body)
            elif "prompt_logprobs" in body and self.kind == "vllm":
                reply = self._vllm(body)
            else:
                reply = self._generate(path, body)
            return 200, self.odd(reply, "score" if scores else "generate") if self.odd else reply

    def logp(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities at every place, (S, V) in float64: of the token behind it."""
        logits_SV = self.model(input_ids=torch.tensor([ids])).logits[0].double()
        return logits_SV[:, : len(self.tokenizer)].log_softmax(-1)

    def _generate(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        chat = path.endswith("chat/completions")
        if chat:
            turns = tuple(Message(**turn) for turn in body["messages"])
            (ids,) = prompt_ids(self.tokenizer, [turns])
        else:
            ids = self.tokenizer(body["prompt"])["input_ids"] if isinstance(
                body["prompt"], str) else body["prompt"]  # fmt: skip
        generated, places = [], []
        while len(generated) < body["max_tokens"]:
            logp_V = self.logp(ids + generated)[-1]
            chosen = torch.full_like(logp_V, -math.inf)
            allowed = self.choices or list(range(len(logp_V)))
            chosen[allowed] = logp_V[allowed]
            if self.choices:  # answers of one to three words, by their prompt
                ends = len(generated) > len(ids) % 3
                chosen = chosen if not ends else torch.full_like(logp_V, -math.inf)
                chosen[self.end] = 0.0 if ends else -math.inf
            generated.append(int(chosen.argmax()))
            places.append(logp_V)
            if generated[-1] == self.end:
                break
        finish = "stop" if generated[-1] == self.end else "length"
        written = generated[:-1] if finish == "stop" else generated
        text = self.tokenizer.decode(written, clean_up_tokenization_spaces=False)
        # OpenAI leaves the closing token out
        listed = written if self.kind == "openai" else generated
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("logprobs"):
            count = body.get("top_logprobs", body["logprobs"])
            as_ids = body.get("return_tokens_as_token_ids", False)
            pairs = list(zip(listed, places, strict=False))
            entries = [self._entry(n, logp_V, count, as_ids) for n, logp_V in pairs]
            choice["logprobs"] = {"content": entries} if chat else {
                "tokens": [name(e) for e in entries],
                "token_logprobs": [e["logprob"] for e in entries],
                "top_logprobs": [
                    {name(t): t["logprob"] for t in e["top_logprobs"]} for e in entries
                ],
            }  # fmt: skip
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(generated)}
        return {"id": "x", "model": self.name, "choices": [choice], "usage": usage}

    def _entry(self, token: int, logp_V: torch.Tensor, count: int, as_ids: bool) -> dict[str, Any]:
        top = logp_V.topk(count)
        others = [
            {**self._token(int(n), as_ids), "logprob": float(lp)}
            for lp, n in zip(*top, strict=True)
        ]
        own = {**self._token(token, as_ids), "logprob": float(logp_V[token])}
        return {**own, "top_logprobs": others}

    def _token(self, token: int, as_ids: bool) -> dict[str, Any]:
        if as_ids:
            return {"token": f"token_id:{token}", "bytes": list(f"token_id:{token}".encode())}
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        raw = self.tokenizer.convert_ids_to_tokens(token)
        if token in self.tokenizer.added_tokens_decoder:
            return {"token": text, "bytes": list(text.encode())}
        letters = _byte_letters()
        return {"token": text, "bytes": [letters[letter] for letter in raw]}

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, count = body["prompt"], body["prompt_logprobs"]
        logp_SV = self.logp(ids)
        listed: list[Any] = [None]
        for token, logp_V in zip(ids[1:], logp_SV, strict=False):
            values, tokens = logp_V.topk(count)
            entries = {token: float(logp_V[token])}
            entries |= {int(n): float(v) for v, n in zip(values, tokens, strict=True)}
            listed.append({
                str(n): {"logprob": v, "rank": 1, "decoded_token": self.tokenizer.decode([n])}
                for n, v in entries.items()
            })  # fmt: skip
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": listed}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"id": "x", "model": self.name, "choices": [choice], "usage": usage}

    def _candidates(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, sampling = body["token_ids"], body["sampling_params"]
        rows, start = sampling["prompt_logprob_token_ids"], sampling["prompt_logprob_start"]
        assert len(rows) == len(ids) - 1 - start
        logp_SV = self.logp(ids)
        scores = np.full((len(rows), max(map(len, rows))), -np.inf, np.float32)
        for n, row in enumerate(rows):
            scores[n, : len(row)] = logp_SV[start + n, row]
        content = BytesIO()
        np.save(content, scores)
        matrix = base64.b64encode(content.getvalue()).decode()
        choice = {"index": 0, "finish_reason": "length", "token_ids": [1]}
        reply = {"request_id": "x", "model": self.name, "usage": None, "prompt_logprobs": None}
        return reply | {"choices": [choice], "prompt_token_id_logprobs": matrix}

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, start, count = body["input_ids"], body["logprob_start_len"], body["top_logprobs_num"]
        logp_SV = self.logp(ids)
        own: list[Any] = [[None, ids[start], None]]
        top: list[Any] = [None]
        for at in range(start + 1, len(ids)):
            logp_V = logp_SV[at - 1]
            values, tokens = logp_V.topk(count)
            own.append([float(logp_V[ids[at]]), ids[at], None])
            top.append([[float(v), int(n), None] for v, n in zip(values, tokens, strict=True)])
        meta = {"input_token_logprobs": own, "input_top_logprobs": top, "id": "x"}
        counts = {"prompt_tokens": len(ids), "completion_tokens": 1, "cached_tokens": 0}
        return {"text": "x", "output_ids": [1], "meta_info": meta | counts}


def name(entry: dict[str, Any]) -> str:
    """A token's name where there is no field for its bytes, as OpenAI's completions write it."""
    as_id = entry["token"].startswith("token_id:")
    return entry["token"] if as_id else bytes_name(bytes(entry["bytes"]))


def publish_served(
    service: ServedModel, *, scoring: str = "none", top_logprobs: int = 20, model: str = "large-1"
) -> None:
    """Write the teacher `main` of the current project as `adapt` does."""
    publish_address(
        service.url, service.tokenizer, scoring=scoring, top_logprobs=top_logprobs, model=model
    )


def publish_address(
    url: str, tokenizer: Any, *, model: str, scoring: str = "none", top_logprobs: int = 20
) -> None:
    """Write a teacher of any service."""
    with checkpoints.staged(ADAPT / "main") as partial:
        tokenizer.save_pretrained(partial)
        signals = {"top_logprobs": top_logprobs, "scoring": scoring}
        address = {"url": url, "key": "", "model": model, "revision": ""}
        write_json(partial / ENDPOINT, address | {"signals": signals})
