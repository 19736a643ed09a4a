"""A route: who answers, what it costs, which prompts are kept, and that `collect` reads them."""

import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from cohobate.backends.endpoint import ServiceAddress, identity_of
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.openai import OpenAI
from cohobate.backends.run_teacher import make_request
from cohobate.data.records import COLLECT, UNLABELLED, Row, read_rows, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding
from cohobate.params import validated
from cohobate.serving import route_figures
from cohobate.serving.app import make_app
from cohobate.serving.kept_prompts import OPEN, TRAFFIC, KeptPrompts, TrafficKeeping
from cohobate.serving.openai_api import Query, Served
from cohobate.serving.redaction import RedactedPattern, Redaction
from cohobate.serving.route_figures import FIGURES, FiguresFile
from cohobate.serving.routed_model import RoutedModel
from cohobate.serving.service_teacher import ServiceTeacher
from flows import next_round, routing
from tasks.collect.stage import CollectParams, run
from tests.loopback_teacher import LoopbackTeacher, answer_to

KNOWN = [f"Definition: a small plant, number {n}\nCategory:" for n in range(40)]
DRIFTED = [f"Definition: a large machine, number {n}\nCategory:" for n in range(40)]
ADDRESS: dict[str, Any] = {"key": "", "model": "large-1", "revision": ""}
PRICE = {"input": 1000.0, "output": 2000.0}  # a request of 10 and 5 tokens costs 0.02


class Student:
    """Sure of plants, and of nothing else."""

    def answers(self, query: Query) -> list[Served]:
        share = {True: 0.95, False: 0.4}
        return [
            Served(Answer(" plant", "stop", math.log(share["plant" in str(prompt)])), 8, 2)
            for prompt in query.prompts
            for _ in range(query.samples)
        ]


@pytest.fixture
def service() -> Iterator[LoopbackTeacher]:
    with LoopbackTeacher() as started:
        yield started


def routing_address(service: LoopbackTeacher) -> ServiceAddress:
    return ServiceAddress(url=service.url, **ADDRESS)


class Route:
    """A client of a route in the current folder, and the lines of its log."""

    def __init__(self, service: LoopbackTeacher, expected: float | None = None, **more: Any):
        backend = OpenAI(type="openai", price=PRICE, attempts=1)
        address = routing_address(service)
        teacher = ServiceTeacher(backend, address, "", more.pop("cap", None))
        self.lines: list[str] = []
        figures = FiguresFile(Path(), "9f8a" * 16, expected, self.lines.append)
        keep = more.pop("keep", None)
        kept = keep and KeptPrompts(
            Path(), keep, lambda path, n: self.lines.append(f"{path.name} {n}")
        )
        names = ("student", "main")
        self.model = RoutedModel(Student(), teacher, 0.9, figures, kept=kept, names=names, **more)
        self.client = TestClient(make_app(self.model, "student"))

    def ask(self, prompt: str, status: int = 200, **more: Any) -> dict[str, Any]:
        body = {"prompt": prompt, "max_tokens": 3} | more
        reply = self.client.post("/v1/completions", json=body)
        assert reply.status_code == status, reply.text
        return reply.json()

    def close(self) -> None:
        self.model.close()


def test_a_drift_is_handed_on_kept_and_read_by_the_next_collect(
    project: Path, service: LoopbackTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_figures, "WINDOW", 40)
    with closing(Route(service, expected=0.1, keep=TrafficKeeping(rows=20, share=0.1))) as route:
        for prompt in KNOWN:
            assert route.ask(prompt)["model"] == "student"
        assert service.sent == 0
        for prompt in DRIFTED:
            reply = route.ask(prompt)
            assert reply["model"] == "main"
            assert reply["choices"][0]["text"] == answer_to(prompt)
            assert reply["usage"]["total_tokens"] == 15
    before, after, *_ = [line for line in route.lines if "requests" in line]
    assert "0% handed on" in before and "drifted" not in before
    assert "100% handed on" in after and after.endswith("the traffic has drifted")
    assert "0 USD a request, 0.012 by the teacher alone" in before
    assert "0.02 USD a request, 0.02 by the teacher alone" in after
    (figures,) = json.loads(FIGURES.read_text())
    assert figures["requests"] == 80 and figures["handed_on"] == 40
    assert figures["cost"] == pytest.approx(0.8) and figures["kept"] >= 40
    files = [path.name for path in sorted(TRAFFIC.iterdir())]
    assert files[:2] == ["prompts-000001.jsonl", "prompts-000002.jsonl"]
    assert f"{files[0]} 20" in route.lines
    collected = collect_with_the_traffic()
    assert sum("machine" in prompt for prompt in collected) >= 36
    # what was bought for the traffic is not bought again by the round
    identity = identity_of(routing_address(service))
    with Ledger(storage_for(identity)) as ledger:
        backend = OpenAI(type="openai", price=PRICE)
        row = Row(id=row_id(DRIFTED[0]), prompt=DRIFTED[0])
        request = make_request(backend, Decoding(max_tokens=3), row, DRIFTED[0])
        assert ledger[request.key].text == answer_to(DRIFTED[0]) and ledger.spent == 0


def collect_with_the_traffic() -> list[str]:
    """Collect words and the kept prompts; return the unlabelled ones."""
    words = [{"text": f"word {n} {n % 7}", "answer": f"kind{n % 3}"} for n in range(60)]
    Path("words.jsonl").write_text("".join(json.dumps(word) + "\n" for word in words))
    nothing = {"labelled": 0, "dev": 0, "test": 0, "unlabelled": 1000}
    sources = {
        "words": {
            "source": {"type": "files", "path": "words.jsonl"},
            "template": {"prompt": "Definition: {text}\nCategory:"},
        },
        "traffic": {"source": {"type": "files", "path": "data/traffic"}, "split": nothing},
    }
    sizes = {"labelled": 6, "unlabelled": 5, "dev": 3, "test": 5}
    source = {"type": "several", "path": "data/sources"}
    collect = {"source": source, "sources": sources, "split": sizes}
    assert routing.traffic_sources({"collect": collect}) == ["traffic"]
    run(validated(CollectParams, collect, "collect"))
    assert json.loads((COLLECT / "summary.json").read_text())["set_aside"] == 0
    return [row.prompt for row in read_rows(UNLABELLED, Row) if row.task == "traffic"]


def test_without_the_teacher_a_request_is_refused_or_marked(
    project: Path, service: LoopbackTeacher
) -> None:
    with closing(Route(service, cap=0.0)) as route:
        error = route.ask(DRIFTED[0], 503)["error"]
        assert "the cap" in error["message"] and error["param"] == "params.yaml, route.cap"
        assert route.ask(KNOWN[0])["model"] == "student"
    service.fault = "500"
    with closing(Route(service, unsure=True)) as route:
        assert route.ask(DRIFTED[0])["model"] == "student-unsure"
    assert "1 without the teacher" in route.lines[-1]
    service.fault = ""
    with closing(Route(service)) as route:
        both = route.ask([KNOWN[0], DRIFTED[0]])  # type: ignore[arg-type]
        texts = [choice["text"] for choice in both["choices"]]
        assert texts == [" plant", answer_to(DRIFTED[0])] and both["model"] == "student, main"
        sent = service.sent
        assert route.ask(DRIFTED[0])["model"] == "main" and service.sent == sent


def test_kept_prompts_are_bounded_rotated_and_survive_a_kill(project: Path) -> None:
    keep = TrafficKeeping(rows=3, files=2, share=0.0, longest=40)
    with closing(KeptPrompts(project, keep)) as kept:
        assert not kept.add("a plant", handed_on=False)  # no lot wins
        assert not kept.add("x" * 41, handed_on=True)
        assert kept.add("prompt 0", handed_on=True) and not kept.add("prompt 0", handed_on=True)
        with pytest.raises(UserError, match="another process keeps prompts"):
            KeptPrompts(project, keep)
        for n in range(1, 10):
            assert kept.add(f"prompt {n}", handed_on=True)
    files = sorted(path.name for path in TRAFFIC.iterdir())
    assert files == ["prompts-000002.jsonl", "prompts-000003.jsonl"]
    with OPEN.open("a") as file:
        file.write('{"prompt": "cut of')  # killed while it wrote
    with closing(KeptPrompts(project, keep)) as kept:
        assert not kept.add("prompt 9", handed_on=True)  # known from before
        assert kept.add("prompt 10", handed_on=True) and kept.add("prompt 11", handed_on=True)
    lines = (TRAFFIC / "prompts-000004.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [f"prompt {n}" for n in (9, 10, 11)]
    drawn = KeptPrompts(project, TrafficKeeping(share=0.3, rows=5000))
    assert 0.25 < sum(drawn.add(f"lot {n}", handed_on=False) for n in range(1000)) / 1000 < 0.35
    drawn.close()


def test_what_is_redacted() -> None:
    own = RedactedPattern(pattern=r"order \d+", by=r"order \1")
    redaction = Redaction(patterns=(own,))
    text = "Mail a.b@c-d.org or +49 (30) 1234567, 4111 1111 1111 1111, DE89 3704 0044 0532 0130 00"
    assert redaction.text(text) == "Mail [email] or [phone], [card], [iban]"
    assert redaction.text("see https://x.y/z?q=1 at 10.0.0.1: order 77") == (
        r"see [url] at [ip]: order \1"
    )
    assert redaction.text("key sk-abcdefghijklmnop1234, in 2026, 3.14 and 1,000") == (
        "key [key], in 2026, 3.14 and 1,000"
    )
    with pytest.raises(ValidationError, match="not a regular expression"):
        RedactedPattern(pattern="(")
    assert Redaction(filters=()).text(text) == text


def test_the_threshold_is_the_reports(project: Path) -> None:
    document = {"evaluate": {"router": {"floor": 0.98}}}
    with pytest.raises(UserError, match="no evaluation"):
        routing.threshold_of(routing.ServeRoute(), document, project)
    path = project / "data/evaluate/router.json"
    path.parent.mkdir(parents=True)
    figures = {"floor": 0.98, "share": 0.75, "thresholds": [0.71, 0.76]}
    path.write_text(json.dumps(figures))
    threshold = routing.threshold_of(routing.ServeRoute(), document, project)
    assert threshold == routing.Threshold(0.76, 0.25) and "25%" in str(threshold)
    path.write_text(json.dumps(figures | {"thresholds": [0.71, None]}))
    assert routing.threshold_of(routing.ServeRoute(), document, project).least == math.inf
    document["evaluate"]["router"]["floor"] = 0.9
    with pytest.raises(UserError, match=r"chose a threshold for 0\.98"):
        routing.threshold_of(routing.ServeRoute(), document, project)


def test_a_round_takes_the_prompts_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, worktree, tracked = tmp_path / "root", tmp_path / "worktree", []
    monkeypatch.setattr(next_round.storage, "track", lambda root, path: tracked.append(path))
    (root / TRAFFIC).mkdir(parents=True)
    (worktree / "data").mkdir(parents=True)
    sources = "{traffic: {source: {type: files, path: data/traffic/}}}"
    (worktree / "params.yaml").write_text(f"collect: {{sources: {sources}}}\n")
    with pytest.raises(UserError, match="no prompts of the traffic"):
        next_round.take_traffic(root, worktree)
    (root / TRAFFIC / "prompts-000001.jsonl").write_text('{"prompt": "a"}\n')
    assert next_round.take_traffic(root, worktree) == 1
    (root / TRAFFIC / "prompts-000002.jsonl").write_text('{"prompt": "b"}\n')
    assert next_round.take_traffic(root, worktree) == 1  # resumed: what it began with
    assert tracked == [TRAFFIC, TRAFFIC]
    (worktree / "params.yaml").write_text("collect: {source: {}}\n")
    assert next_round.take_traffic(root, worktree) == 0
