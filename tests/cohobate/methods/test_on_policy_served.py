"""On-policy training with a served teacher: its service scores what the student generates."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cohobate.data.records import ADAPT, TRAIN
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


def test_a_service_that_does_not_score_is_refused_before_training(teacher: Path) -> None:
    shutil.rmtree(ADAPT / "main")
    Path("params.yaml").write_text(GENERATE)
    with ServedModel(teacher) as service:
        publish_served(service)
        with pytest.raises(UserError, match="does not score given text"):
            run("here", phase(**FIELDS), seeds=[1])
        assert service.sent == 0
