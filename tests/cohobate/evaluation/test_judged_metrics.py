"""Win rate and rubric against a known truth, with judges that behave and judges that do not."""

import json
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.backends.cost_log import COST_LOG
from cohobate.data.records import Row, row_id
from cohobate.errors import UserError
from cohobate.evaluation.bootstrap import Bootstrap
from cohobate.evaluation.deciding_metric import AnswerScorer, ByTask, DecidingMetric
from cohobate.evaluation.judged_metrics import Rubric, WinRate
from cohobate.scoring.verifiers import Exact, Task
from tests.loopback_judge import LoopbackJudge, first_always, off_schema

TASK = Task(verifier=Exact(type="exact"))
PRICE = {"type": "openai", "price": {"input": 100.0, "output": 100.0}}


def rows_of(count: int, task: str | None = None) -> list[Row]:
    prompts = [f"question {n}" for n in range(count)]
    return [Row(id=row_id(p), prompt=p, answer="answer 5", task=task) for p in prompts]


def win_rate(service: LoopbackJudge, **settings: Any) -> WinRate:
    judge = {"model": "judge", "endpoint": service.url, "backend": PRICE} | settings.pop(
        "judge", {}
    )
    metric = {"type": "win_rate", "judge": judge, **settings}
    whole: WinRate = params.validated(DecidingMetric, metric, "evaluate.metrics.0")
    return whole


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COHOBATE_LEDGER", raising=False)


def test_the_better_answer_wins_in_both_orders_and_a_tie_is_half() -> None:
    better, worse, equal = "answer 9", "answer 1", "other words 5"
    with LoopbackJudge() as service:
        scorer = AnswerScorer(win_rate(service), TASK)
        answers = [better, worse, equal, "answer 5"]
        assert scorer.scores(rows_of(4), answers, ["answer 5"] * 4, "kd") == [1.0, 0.0, 0.5, 0.5]
        assert service.sent == 6  # the same text twice is a tie without a request
        record = scorer.record()["evaluate.metrics.0"]
    assert record["models"] == {"kd": {"won": 1, "lost": 1, "tie": 2, "identical": 1}}
    assert record["replies"] == 6
    # 10 tokens in and 5 out, at 100 dollars a million
    assert record["cost_usd"] == pytest.approx(6 * 15 * 100 / 1e6)


def test_the_interval_of_a_known_share_has_it() -> None:
    import numpy as np

    # in a fixed order: 28 of 40 rows are won
    answers = [f"answer {9 if n % 10 < 7 else 1}" for n in range(40)]
    with LoopbackJudge() as service:
        scores = AnswerScorer(win_rate(service), TASK).scores(rows_of(40), answers)
    interval = Bootstrap({"kd": np.array([scores])}, 2000, 0).score("kd")
    assert interval.mean == 0.7
    # of a share of 40: 1.96 standard errors of 0.072
    assert (interval.low, interval.high) == pytest.approx((0.56, 0.84), abs=0.03)


def test_a_judge_that_prefers_a_position_decides_nothing() -> None:
    with LoopbackJudge(first_always) as service:
        scorer = AnswerScorer(win_rate(service), TASK)
        assert scorer.scores(rows_of(2), ["answer 9", "answer 1"], None, "kd") == [0.5, 0.5]
    assert scorer.record()["evaluate.metrics.0"]["models"] == {"kd": {"inconsistent": 2}}


def test_replies_that_are_no_verdict_are_counted_and_too_many_refused() -> None:
    with LoopbackJudge(off_schema) as service:
        strict = AnswerScorer(win_rate(service), TASK)
        with pytest.raises(UserError, match="no verdict on 2 of 2 rows") as error:
            strict.scores(rows_of(2), ["answer 9", "answer 1"])
        assert "evaluate.metrics.0.judge.max_tokens" in error.value.fix
        sent = service.sent
        lenient = AnswerScorer(win_rate(service, without_verdict=1.0), TASK)
        assert lenient.scores(rows_of(2), ["answer 9", "answer 1"], None, "kd") == [0.5, 0.5]
        assert service.sent == sent  # what was bought is not bought again, verdict or not
    assert lenient.record()["evaluate.metrics.0"]["models"] == {"kd": {"no verdict": 2}}


def test_nothing_is_bought_twice_and_the_cap_holds() -> None:
    answers = [f"answer {n}" for n in range(4)]
    with LoopbackJudge() as service:
        first = AnswerScorer(win_rate(service), TASK).scores(rows_of(4), answers)
        sent = service.sent
        again = AnswerScorer(win_rate(service), TASK).scores(rows_of(4), answers)
        assert again == first and service.sent == sent == 8
        (note,) = COST_LOG.glob("judge-*.json")
        spent = json.loads(note.read_text())
        assert spent["before"] == 0 and spent["after"] == pytest.approx(8 * 15 * 100 / 1e6)
        capped = win_rate(service, judge={"backend": PRICE | {"cap": 0.013}})
        with pytest.raises(UserError, match="the judge: the cost cap is reached") as error:
            AnswerScorer(capped, TASK).scores(rows_of(4), [f"{a} of 7" for a in answers])
        assert "evaluate.metrics.0.judge.backend.cap" in error.value.where
        assert service.sent == sent


def test_a_service_that_fails_at_times_is_asked_again() -> None:
    with LoopbackJudge() as service:
        service.fault, service.times = "500", 1
        metric = win_rate(service, judge={"backend": PRICE | {"backoff": 0.01}})
        assert AnswerScorer(metric, TASK).scores(rows_of(2), ["answer 9", "answer 1"]) == [1.0, 0.0]
        assert service.sent == 8


def test_a_judge_that_is_down_is_no_judge_without_verdicts() -> None:
    with LoopbackJudge() as service:
        service.fault, service.times = "500", 100
        metric = win_rate(service, judge={"backend": PRICE | {"backoff": 0.01, "attempts": 2}})
        with pytest.raises(UserError, match="the judge: 2 of 2 requests failed") as error:
            AnswerScorer(metric, TASK).scores(rows_of(1), ["answer 9"])
        assert error.value.fix.startswith("repeat the command")


def test_a_rubric_is_a_mean_rating() -> None:
    with LoopbackJudge() as service:
        judge = {"model": "judge", "endpoint": service.url}
        rubric = Rubric.model_validate({"type": "rubric", "judge": judge})
        scorer = AnswerScorer(rubric, TASK)
        assert scorer.scores(rows_of(3), ["answer 10", "answer 1", "answer 4"]) == [1, 0, 1 / 3]
        five = Rubric.model_validate({"type": "rubric", "judge": judge, "scale": 5})
        # 10 is no rating of this scale
        with pytest.raises(UserError, match="no verdict on 1 of 2 rows"):
            AnswerScorer(five, TASK).scores(rows_of(2), ["answer 10", "answer 5"])
        settings = {"type": "rubric", "judge": judge, "reference": True, "without_verdict": 1.0}
        shown = Rubric.model_validate(settings)
        AnswerScorer(shown, TASK).scores(rows_of(1), ["answer 3"])
        assert "The reference answer:" in service.bodies[-1]["messages"][1]["content"]


def test_each_task_has_its_metric() -> None:
    with LoopbackJudge() as service:
        judged = win_rate(service)
        metric = ByTask(type="by_task", metrics={"open": judged})
        scorer = AnswerScorer(metric, TASK)
        rows = [rows_of(1, "open")[0], rows_of(2, "closed")[1]]
        assert scorer.scores(rows, ["answer 9", "answer 5"]) == [1.0, 1.0]
        assert scorer.scores(rows, ["answer 1", "answer 6"]) == [0.0, 0.0]
        other = judged.model_copy(update={"against": "baseline"})
        with pytest.raises(ValueError, match="compare with the same model"):
            ByTask(type="by_task", metrics={"open": judged, "other": other})
    assert list(scorer.record()) == ["evaluate.metrics.0.metrics.open"]


def test_settings_that_do_not_fit_are_refused() -> None:
    metric = {"type": "win_rate", "judge": {"model": "m", "backend": {"type": "openai"}}}
    with pytest.raises(UserError, match="openai and openai-batch are for a judge with an endpoint"):
        params.validated(DecidingMetric, metric, "evaluate.metrics.0")
    metric["judge"] = {"model": "m", "endpoint": "http://example.com/v1", "key": "KEY"}
    with pytest.raises(UserError, match="a key is not sent over plain http"):
        params.validated(DecidingMetric, metric, "evaluate.metrics.0")
