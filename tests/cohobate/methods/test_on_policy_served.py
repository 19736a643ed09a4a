"""On-policy training with a served teacher: its service scores what the student generates."""

import base64
import json
import math
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cohobate.backends.served_source import ServedSource
from cohobate.data.records import ADAPT, LABELLED, TRAIN, Row, read_rows, write_rows
from cohobate.errors import UserError
from tasks.train.stage import run
from tests.cohobate.methods.test_on_policy import ON_POLICY
from tests.served_model import ServedModel, publish_served
from tests.tasks.train.test_train import digests, history, phase, round_so_far

__all__ = ["round_so_far"]
FIELDS = ON_POLICY | {"updates": 4, "student_text": {"type": "constant", "share": 0.5}}
GENERATE = "generate: {backend: {type: openai, api: completions, backoff: 0.01}}\n"


@pytest.fixture
def teacher(round_so_far: Any, tmp_path: Path) -> Path:
    """The teacher's checkpoint, no longer in the project: it is served."""
    folder = tmp_path / "served"
    shutil.copytree(ADAPT / "main", folder)
    return folder


def losses() -> list[float]:
    return [float(line["loss"]) for line in history("here", 1)]


def test_the_losses_are_those_of_the_same_teacher_in_memory(teacher: Path) -> None:
    run("here", phase(**FIELDS), seeds=[1])
    live = losses()
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    with ServedModel(teacher) as service:
        # the whole vocabulary: a bucket would make the divergence smaller
        publish_served(service, scoring="vllm", top_logprobs=len(service.tokenizer))
        run("here", phase(**FIELDS), seeds=[1])
        assert losses() == pytest.approx(live, rel=0.02)
        sent, first = service.sent, digests(TRAIN / "here")
        assert service.requests == {"score": sent} and sent > 0
        run("here", phase(**FIELDS), seeds=[1])
        assert service.sent == sent, "every score is in the ledger"
        assert digests(TRAIN / "here") == first, "nothing depends on timing"


def test_a_row_that_is_refused_is_masked_and_counted(teacher: Path) -> None:
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    replies = iter(range(1000))

    def odd(reply: dict[str, Any], _: str) -> Any:
        if next(replies) == 2:
            for one in reply["choices"][0]["prompt_logprobs"][-1].values():
                one["logprob"] = math.nan
        return reply

    with ServedModel(teacher, odd=odd) as service:
        publish_served(service, scoring="vllm")
        run("here", phase(**FIELDS), seeds=[1])
    summary = json.loads((TRAIN / "here/summary.json").read_text())
    assert summary["rows without signals, seed 1"] == 1


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_service_reads_the_teachers_prompt(teacher: Path, share: float) -> None:
    """With prompts that the teacher alone reads: given answers, and those of the student."""
    rows = [
        row.model_copy(update={"teacher_prompt": f"Hint: a thing.\n{row.prompt}"} if n % 3 else {})
        for n, row in enumerate(read_rows(LABELLED, Row))
    ]
    write_rows(LABELLED, rows)
    fields = FIELDS | {"student_text": {"type": "constant", "share": share}}
    run("here", phase(**fields), seeds=[1])
    live = losses()
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    with ServedModel(teacher) as service:
        publish_served(service, scoring="vllm", top_logprobs=len(service.tokenizer))
        run("here", phase(**fields), seeds=[1])
        assert losses() == pytest.approx(live, rel=0.02)
        texts = [service.tokenizer.decode(body["prompt"]) for body in service.bodies]
    hinted = sum(text.startswith("Hint:") for text in texts)
    assert 0 < hinted < len(texts)


def test_a_chat_service_reads_a_text_as_the_users_turn(teacher: Path) -> None:
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE.replace("completions", "chat"))
    with ServedModel(teacher) as service:
        publish_served(service, scoring="vllm")
        run("here", phase(**FIELDS), seeds=[1])
        texts = [service.tokenizer.decode(body["prompt"]) for body in service.bodies]
    assert texts and all(text.startswith("<|user|>Definition: ") for text in texts)


def test_the_student_chooses_the_candidates(teacher: Path) -> None:
    """Over its own likeliest ids; as many as there are give the loss of a teacher in memory."""
    own = {"decoding": {"max_tokens": 6, "temperature": 1}}
    fields = FIELDS | {"student_text": {"type": "constant", "share": 1.0}}
    run("here", phase(**fields), seeds=[1])
    live = losses()
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    with ServedModel(teacher) as service:
        everything = own | {"candidates": len(service.tokenizer)}
        publish_served(service, scoring="vllm", top_logprobs=5)
        run("here", phase(**fields | {"sampling": everything}), seeds=[1])
        assert losses() == pytest.approx(live, rel=0.02)
        sent, first = service.sent, digests(TRAIN / "here")
        assert service.requests == {"score": sent} and sent > 0
        run("here", phase(**fields | {"sampling": everything}), seeds=[1])
        assert service.sent == sent and digests(TRAIN / "here") == first
        # given text is scored by the teacher's likeliest ids, which are fewer
        run("here", phase(**FIELDS | {"sampling": own | {"candidates": 8}}), seeds=[1])
        chosen = [b["sampling_params"]["prompt_logprob_token_ids"] for b in service.bodies[sent:]
                  if "sampling_params" in b]  # fmt: skip
        assert chosen and all(len(row) in (8, 9) for rows in chosen for row in rows)
        assert any("prompt_logprobs" in body for body in service.bodies[sent:])
    with pytest.raises(ValueError, match="they need replay: 0"):
        phase(**FIELDS | {"sampling": own | {"candidates": 8, "replay": 8}})


@pytest.mark.parametrize("fault", ["rows", "nan", "form"])
def test_candidates_that_are_not_scored_are_refused(teacher: Path, fault: str) -> None:
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    replies = iter(range(1000))

    def odd(reply: dict[str, Any], _: str) -> Any:
        if next(replies) != 2:
            return reply
        scores = np.load(BytesIO(base64.b64decode(reply["prompt_token_id_logprobs"])))
        scores = scores[:-1] if fault == "rows" else scores * math.nan
        content = BytesIO()
        np.save(content, scores)
        matrix = "no array" if fault == "form" else base64.b64encode(content.getvalue()).decode()
        return reply | {"prompt_token_id_logprobs": matrix}

    fields = FIELDS | {"student_text": {"type": "constant", "share": 1.0}}
    fields |= {"sampling": {"decoding": {"max_tokens": 6, "temperature": 1}, "candidates": 5}}
    with ServedModel(teacher, odd=odd) as service:
        publish_served(service, scoring="vllm", top_logprobs=5)
        if fault == "form":
            with pytest.raises(UserError, match="prompt_token_id_logprobs"):
                run("here", phase(**fields), seeds=[1])
            return
        run("here", phase(**fields), seeds=[1])
    summary = json.loads((TRAIN / "here/summary.json").read_text())
    assert summary["rows without signals, seed 1"] == 1


def test_rows_are_scored_while_others_are_generated(
    teacher: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Answers are sent as they end: a slow service is waited for a part of its time alone."""
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    sampling = {"decoding": {"max_tokens": 40, "temperature": 1}}
    fields = FIELDS | {"student_text": {"type": "constant", "share": 1.0}, "sampling": sampling}
    submitted: list[int] = []
    original = ServedSource.submit

    def submit(self: ServedSource, rows: Any) -> None:
        submitted.append(len(rows))
        original(self, rows)

    with ServedModel(teacher) as service, pytest.MonkeyPatch.context() as patch:
        publish_served(service, scoring="vllm")
        patch.setattr(ServedSource, "submit", submit)
        run("here", phase(**fields), seeds=[1])
    # one at a time as they end, and the update's four rows once all are there
    assert submitted.count(4) >= 4 and submitted.count(1) + submitted.count(2) >= 4
    assert "of which training waited" in capfd.readouterr().err


def test_a_service_that_does_not_score_is_refused_before_training(teacher: Path) -> None:
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    with ServedModel(teacher) as service:
        publish_served(service)
        with pytest.raises(UserError, match="does not score given text"):
            run("here", phase(**FIELDS), seeds=[1])
        assert service.sent == 0
