"""Preflight checks what scores answers: judges, the sandbox, metrics of tasks."""

from typing import Any

import pytest

from cohobate.errors import UserError
from cohobate.params import ParamsError
from cohobate.scoring import sandbox
from tasks.preflight.scoring import check_scoring

NAME = "COHOBATE_JUDGE_KEY"
SERVED = {"model": "large-1", "endpoint": "https://api.example.com/v1", "key": NAME}


def document(*metrics: dict[str, Any], verifier: str = "exact", **sections: Any) -> dict[str, Any]:
    task = {"verifier": {"type": "label"}, "tasks": {"programs": {"verifier": {"type": verifier}}}}
    return {"evaluate": {"metrics": list(metrics)}, "task": task, **sections}


def test_a_round_without_judges_and_code_passes() -> None:
    check_scoring(document({"type": "verifier"}, {"type": "perplexity"}))
    check_scoring({})


def test_the_key_and_the_model_of_a_judge_have_to_be_there(
    monkeypatch: pytest.MonkeyPatch, project: Any
) -> None:
    rubric = {"type": "rubric", "judge": SERVED}
    with pytest.raises(UserError, match=f"variable {NAME} is not set") as error:
        check_scoring(document({"type": "verifier"}, rubric))
    assert error.value.where == "params.yaml, evaluate.metrics.1.judge"
    monkeypatch.setenv(NAME, "sk-1")
    check_scoring(document({"type": "verifier"}, rubric))
    here = {"type": "win_rate", "judge": {"model": "./none"}}
    by_task = {"type": "by_task", "metrics": {"a": here}}
    with pytest.raises(UserError, match="the judge: there is no such folder") as error:
        check_scoring(document(by_task, collect={"sources": {"a": {}}}))
    assert error.value.where == "params.yaml, evaluate.metrics.0.metrics.a.judge"


def test_a_metric_for_a_task_that_is_none_is_refused() -> None:
    by_task = {"type": "by_task", "metrics": {"sum": {"type": "rouge_l"}}}
    with pytest.raises(UserError, match="'sum'; did you mean 'sums'"):
        check_scoring(document(by_task, collect={"sources": {"sums": {}}}))
    with pytest.raises(ParamsError, match="rouge_3"):
        check_scoring(document({"type": "by_task", "metrics": {"sums": {"type": "rouge_3"}}}))


def test_code_is_refused_where_it_cannot_be_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    check_scoring(document(verifier="code"))
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    sandbox._run.cache_clear()
    with pytest.raises(UserError, match="cannot be isolated on this machine"):
        check_scoring(document(verifier="code"))
