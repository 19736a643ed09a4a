"""Signals of a teacher behind an endpoint: those that came with its answers, and scored text."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from cohobate.backends.openai import OpenAI
from cohobate.backends.served_capture import ServedCapture
from cohobate.backends.settings import GenerateParams
from cohobate.data.examples import examples_of, row_key
from cohobate.data.records import (
    ANSWER_SIGNALS,
    CAPTURE,
    FILTER,
    GENERATE,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    row_id,
    write_rows,
)
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding
from cohobate.teachers.signal_store.capture import capture_signals
from cohobate.teachers.signal_store.missing import without_missing
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.store import SignalStore
from tasks.generate.stage import run
from tests.llama_server import MODEL, llama_server
from tests.served_model import ServedModel, publish_address, publish_served

WORDS = ("Ġanimal", "Ġplant", "Ġperson")
RESPONSES = GENERATE / "main" / "responses.jsonl"
KEPT = FILTER / "kept.jsonl"
SIGNALS = ANSWER_SIGNALS / "main"
STORE = CAPTURE / "main"
TOP_K: Any = {"type": "top_k", "k": 20}


def params(api: str = "completions", **fields: Any) -> GenerateParams:
    backend = OpenAI(type="openai", api=api, backoff=0.01, **fields)  # type: ignore[arg-type]
    return GenerateParams(backend=backend, decoding=Decoding(max_tokens=6))


def write_unlabelled(count: int) -> None:
    prompts = [f"Definition: {'abcdefghij'[n]} small\nCategory:" for n in range(count)]
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in prompts])


def given_rows(count: int) -> list[Response]:
    """Rows with answers that the service did not generate."""
    return [
        Response(id=row_id(f"a {n}"), prompt=f"a {n}", answer=" plant person", teacher="main",
                 finish="stop", origin="ground_truth")
        for n in range(count)
    ]  # fmt: skip


def capture(unscored: float = 0.0, k: int = 20, api: str = "completions") -> dict[str, Any]:
    section = CaptureParams(signals={**TOP_K, "k": k})  # type: ignore[arg-type]
    return ServedCapture("main", section, params(api)).write(KEPT, STORE, unscored)


def keep_all() -> list[Response]:
    rows = list(read_rows(RESPONSES, Response))
    write_rows(KEPT, rows)
    return rows


def read(folder: Path, rows: list[Response], tokenizer: Any) -> dict[str, Any]:
    store = SignalStore(folder)
    examples = store.attach(examples_of(rows, encode_all(tokenizer, rows)), tokenizer)
    return store.read([example.signal for example in examples])


def assert_same(served: dict[str, Any], local: dict[str, Any], but: list[int] = ()) -> None:  # type: ignore[assignment]
    """The same distributions, within what the store rounds to; `but` for some tokens."""
    assert served["ids_NK"].shape == local["ids_NK"].shape
    for n, (ours, theirs) in enumerate(zip(served["ids_NK"], local["ids_NK"], strict=True)):
        if n not in but:
            a = dict(zip(ours.tolist(), served["logp_NK"][n].tolist(), strict=True))
            b = dict(zip(theirs.tolist(), local["logp_NK"][n].tolist(), strict=True))
            assert len(a.keys() & b.keys()) >= len(b) - 1  # ties at the end of the list
            assert max(abs(a[t] - b[t]) for t in a.keys() & b.keys()) < 0.05
            gap = abs(served["rest_logprob_NQ"][n] - local["rest_logprob_NQ"][n])
            assert float(gap) < 0.02


def local_capture(checkpoint: Path, tmp_path: Path, k: int = 20) -> Path:
    section = CaptureParams(signals={**TOP_K, "k": k}, precision="float32", threads=1)  # type: ignore[arg-type]
    capture_signals(checkpoint, KEPT, tmp_path / "local", section, label="local")
    return tmp_path / "local"


class TestAnswers:
    @pytest.mark.parametrize("scoring", ["vllm", "none"])
    def test_they_are_those_of_a_pass_over_the_same_text(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any, scoring: str
    ) -> None:
        write_unlabelled(6)
        with ServedModel(checkpoint, words=WORDS) as service:
            publish_served(service, scoring=scoring)
            run("main", params())
            rows = [row for row in keep_all() if row.finish == "stop"]
            write_rows(KEPT, rows)
            assert len(rows) >= 3
            sent = service.sent
            figures = capture()
            assert service.sent == sent  # nothing is bought twice
            assert figures["with_answers"] == len(rows) and figures["scored"] == 0
        assert_same(
            read(STORE, rows, tokenizer),
            read(local_capture(checkpoint, tmp_path), rows, tokenizer),
        )

    def test_those_of_llama_cpp_are_those_of_a_pass(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any
    ) -> None:
        pytest.importorskip("xllamacpp")
        write_unlabelled(4)
        grammar = 'root ::= " animal" | " plant" | " person"'
        with llama_server(checkpoint, tmp_path / "gguf") as url:
            publish_address(url, tokenizer, model=MODEL)
            run("main", params(extra={"grammar": grammar}))
            # random weights write some words in other pieces than the tokenizer would
            figures = capture(unscored=0.9) if keep_all() else {}
        assert figures["with_answers"] >= 2
        keys = {json.loads(line)["key"] for line in missing_lines()}
        rows = [row for row in read_rows(RESPONSES, Response) if row_key(row) not in keys]
        assert len(rows) == figures["with_answers"]
        write_rows(KEPT, rows)
        assert_same(
            read(STORE, rows, tokenizer),
            read(local_capture(checkpoint, tmp_path), rows, tokenizer),
        )

    def test_a_service_that_leaves_the_closing_token_out(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any
    ) -> None:
        write_unlabelled(4)
        with ServedModel(checkpoint, "openai", words=WORDS) as service:
            publish_served(service)
            run("main", params("chat"))
            rows = [row for row in keep_all() if row.finish == "stop"]
            write_rows(KEPT, rows)
            figures = json.loads((SIGNALS / "summary.json").read_text())
            assert figures["closing_tokens_assumed"] == len(rows)
            capture(api="chat")
        top = read(STORE, rows, tokenizer)
        at = -1
        for example in examples_of(rows, encode_all(tokenizer, rows)):
            at += example.length
            likeliest = top["ids_NK"][at][top["logp_NK"][at].argmax()]
            assert int(likeliest) == tokenizer.eos_token_id
            assert float(top["logp_NK"][at].max()) == pytest.approx(0, abs=2e-3)

    def test_a_smaller_k_is_had_from_what_came(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any
    ) -> None:
        write_unlabelled(4)
        with ServedModel(checkpoint, words=WORDS) as service:
            publish_served(service, scoring="vllm")
            run("main", params())
            rows = [row for row in keep_all() if row.finish == "stop"]
            write_rows(KEPT, rows)
            capture(k=5)
        assert SignalStore(STORE).origin.form.k == 5  # type: ignore[union-attr]
        assert_same(
            read(STORE, rows, tokenizer),
            read(local_capture(checkpoint, tmp_path, 5), rows, tokenizer),
        )

    def test_a_killed_generate_writes_the_same_bytes(self, project: Path, checkpoint: Path) -> None:
        write_unlabelled(5)
        with ServedModel(checkpoint, words=WORDS) as service:
            publish_served(service, scoring="vllm")
            run("main", params())
            sent, first = service.sent, manifest()
            run("main", params())
            assert service.sent == sent and manifest() == first

    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ("fewer", "19 log-probabilities at a token, 20 were requested"),
            ("nan", "a log-probability is not a number"),
            ("positive", "a log-probability is above 0"),
            ("mass", "the probabilities at a token sum to"),
            ("token", "token 0 is another one in the service's reply"),
            ("model", "another model answered: small-1"),
            ("none", "the reply contains no log-probabilities"),
        ],
    )
    def test_what_cannot_be_signals_is_refused_and_bought_once(
        self, project: Path, checkpoint: Path, fault: str, reason: str
    ) -> None:
        write_unlabelled(4)
        with ServedModel(checkpoint, words=WORDS, odd=lambda r, _: spoilt(r, fault)) as service:
            publish_served(service)
            run("main", params("chat"))
            assert len(keep_all()) == 4
            without = SIGNALS / "without_signals.jsonl"
            lines = [json.loads(line) for line in without.read_text().splitlines()]
            assert len(lines) == 4
            assert all(line["reason"].startswith((reason, "the answer is cut")) for line in lines)
            assert any(line["reason"].startswith(reason) for line in lines)
            with pytest.raises(UserError, match="4 of 4 rows have no signals"):
                capture(api="chat")
            run("main", params("chat"))
            assert service.sent == 4


class TestScoring:
    @pytest.mark.parametrize("kind", ["vllm", "sglang"])
    def test_given_text_is_scored_as_a_pass_scores_it(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any, kind: Any
    ) -> None:
        rows = given_rows(7)
        write_rows(KEPT, rows)
        with ServedModel(checkpoint, kind) as service:
            publish_served(service, scoring=kind)
            figures = capture()
            assert figures["scored"] == 7 and service.requests == {"score": 7}
            capture()
            assert service.sent == 7  # from the ledger
        assert_same(
            read(STORE, rows, tokenizer),
            read(local_capture(checkpoint, tmp_path), rows, tokenizer),
        )

    def test_only_what_did_not_come_with_the_answers_is_scored(
        self, project: Path, checkpoint: Path, tmp_path: Path, tokenizer: Any
    ) -> None:
        write_unlabelled(5)
        with ServedModel(checkpoint, "vllm", words=WORDS) as service:
            publish_served(service, scoring="vllm")
            run("main", params())
            own = [row for row in keep_all() if row.finish == "stop"]
            rows = [*own, *given_rows(3)]
            write_rows(KEPT, rows)
            figures = capture()
            assert service.requests == {"generate": 5, "score": 3}
        assert (figures["with_answers"], figures["scored"]) == (len(own), 3)
        assert_same(
            read(STORE, rows, tokenizer),
            read(local_capture(checkpoint, tmp_path), rows, tokenizer),
        )

    def test_a_text_is_scored_as_the_turn_that_a_chat_service_reads(
        self, project: Path, checkpoint: Path
    ) -> None:
        write_rows(KEPT, given_rows(1))
        with ServedModel(checkpoint) as service:
            publish_served(service, scoring="vllm")
            capture(api="chat")
            (body,) = service.bodies
            text = service.tokenizer.decode(body["prompt"])
            assert text == "<|user|>a 0<|end|><|assistant|> plant person<|end|>"

    @pytest.mark.parametrize("kind", ["vllm", "sglang"])
    @pytest.mark.parametrize(
        ("fault", "reason"),
        [
            ("fewer", "log-probabilities at a token, 20 were requested"),
            ("nan", "a log-probability is not a number"),
            ("positive", "a log-probability is above 0"),
            ("mass", "the probabilities at a token sum to"),
            ("token", "was sent"),
            ("short", "tokens were scored of 3"),
            ("model", "another model answered: small-1"),
        ],
    )
    def test_a_bad_reply_is_refused_counted_and_bought_once(
        self, project: Path, checkpoint: Path, kind: Any, fault: str, reason: str
    ) -> None:
        if (kind, fault) == ("sglang", "model"):
            pytest.skip("its reply names no model")
        rows = given_rows(6)
        write_rows(KEPT, rows)
        replies = iter(range(100))

        def odd(reply: dict[str, Any], _: str) -> Any:
            return spoilt_score(reply, fault) if next(replies) == 3 else reply

        with ServedModel(checkpoint, kind, odd=odd) as service:
            publish_served(service, scoring=kind)
            with pytest.raises(UserError, match="1 of 6 rows have no signals"):
                capture()
            assert service.sent == 6
            figures = capture(unscored=0.2)
            assert service.sent == 6
        assert (figures["scored"], figures["missing"]) == (5, 1)
        (line,) = (STORE / "missing.jsonl").read_text().splitlines()
        assert reason in json.loads(line)["reason"]
        tokenizer = service.tokenizer
        left = without_missing([STORE], examples_of(rows, encode_all(tokenizer, rows)))
        assert len(SignalStore(STORE).attach(left, tokenizer)) == 5

    @pytest.mark.parametrize("scoring", ["vllm", "sglang"])
    def test_a_service_that_does_not_score_stops_the_capture_at_the_first_request(
        self, project: Path, checkpoint: Path, scoring: str
    ) -> None:
        write_rows(KEPT, given_rows(6))
        with ServedModel(checkpoint, "openai") as service:
            publish_served(service, scoring=scoring)
            with pytest.raises(UserError) as stopped:
                capture()
            assert service.sent == 1 and "teachers.*" in str(stopped.value.fix)

    def test_the_cap_holds(self, project: Path, checkpoint: Path) -> None:
        write_rows(KEPT, given_rows(6))
        price = {"input": 1e6, "output": 0.0}  # a dollar a token
        with ServedModel(checkpoint) as service:
            publish_served(service, scoring="vllm")
            generate = params(price=price, cap=20.0)
            served = ServedCapture("main", CaptureParams(), generate)
            with pytest.raises(UserError, match="cost cap is reached"):
                served.write(KEPT, STORE, 0.0)
            assert 1 <= service.sent <= 20 // len(service.bodies[0]["prompt"])


def missing_lines() -> list[str]:
    return (STORE / "missing.jsonl").read_text().splitlines()


def manifest() -> str:
    return (SIGNALS / "manifest.json").read_text()


def spoilt(reply: dict[str, Any], fault: str) -> dict[str, Any]:
    content = reply["choices"][0]["logprobs"]["content"]
    first = content[0]
    if fault == "fewer":
        del first["top_logprobs"][-1]
    elif fault == "nan":
        first["top_logprobs"][2]["logprob"] = math.nan
    elif fault == "positive":
        first["top_logprobs"][0]["logprob"] = 0.5
    elif fault == "mass":
        for one in first["top_logprobs"]:
            one["logprob"] = -0.5
    elif fault == "token":
        first |= {"token": " x", "bytes": [32, 120]}
    elif fault == "none":
        reply["choices"][0]["logprobs"] = None
    return reply | ({"model": "small-1"} if fault == "model" else {})


def spoilt_score(reply: dict[str, Any], fault: str) -> dict[str, Any]:
    if fault == "model":
        return reply | {"model": "small-1"}
    if "meta_info" in reply:
        own = reply["meta_info"]["input_token_logprobs"]
        top = reply["meta_info"]["input_top_logprobs"]
        if fault == "short":
            del own[:2], top[:2]
        elif fault == "token":
            own[-1][1] += 1
        elif fault == "fewer":
            del top[-1][-1]
        else:
            for one in top[-1]:
                one[0] = {"nan": math.nan, "positive": 0.5, "mass": -0.5}[fault]
        return reply
    listed = reply["choices"][0]["prompt_logprobs"]
    if fault == "short":
        del listed[:-2]
    elif fault == "token":
        del listed[-1][next(iter(listed[-1]))]
    elif fault == "fewer":
        listed[-1] = dict(list(listed[-1].items())[:10])
    else:
        for one in listed[-1].values():
            one["logprob"] = {"nan": math.nan, "positive": 0.5, "mass": -0.5}[fault]
    return reply
