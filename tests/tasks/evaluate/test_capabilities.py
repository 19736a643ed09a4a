"""Capabilities and gaps by group: their figures, and the report that shows them."""

from pathlib import Path

import pytest

from cohobate.errors import UserError
from cohobate.params import ParamsError, validated
from tasks.evaluate.cost import Prices
from tasks.evaluate.report import render
from tasks.evaluate.settings import EvaluateParams
from tests.tasks.evaluate.simulated_round import STAGES, TIMINGS, TOKENS, SimulatedRound, read

SETTINGS = {
    "bootstrap": 500,
    "metrics": [
        {"type": "verifier"},
        {"type": "format", "regex": "[a-z]+"},
        {"type": "distinct_n", "n": 1},
        {"type": "macro_f1"},
        {"type": "length", "unit": "characters"},
    ],
    "capabilities": {
        "recall": {"tasks": ["facts"]},
        "long context": {"longest": 0.25},
        "formatting": {"metric": "format"},
        "diversity": {"metric": "distinct_1"},
    },
    "groups": "group",
}


def evaluate(**settings) -> EvaluateParams:
    params: EvaluateParams = validated(EvaluateParams, SETTINGS | settings, "evaluate")
    return params


def test_each_capability_has_its_retention(project: Path) -> None:
    SimulatedRound(tasks=("facts", "sums")).lay_out(evaluate())
    metrics, lines = read("reports/metrics.json"), read("data/evaluate/capabilities.json")
    by_name = {line["capability"]: line for line in lines}
    whole = by_name["all rows"]
    assert list(by_name) == ["all rows", *SETTINGS["capabilities"]]
    assert whole["rows"] == 400 and by_name["recall"]["rows"] == 200
    assert by_name["long context"]["rows"] == 100
    assert whole["retention"]["mean"] == pytest.approx(metrics["retention"], abs=1e-6)
    assert whole["retention"]["low"] == pytest.approx(metrics["retention_low"], abs=0.02)
    recall = metrics["tasks"]["facts"]
    assert by_name["recall"]["retention"]["mean"] == pytest.approx(recall["retention"], abs=1e-6)
    assert by_name["formatting"]["student"]["mean"] == 1.0  # every answer is one word
    assert set(by_name["diversity"]["retention"]) == {"mean"}  # without an interval
    assert metrics["capabilities"]["recall"]["rows"] == 200
    arms = {arm["role"]: arm["metrics"] for arm in read("data/evaluate/arms.json")}
    assert 0 < arms["student"]["macro_f1"] < 1 and arms["student"]["length_characters"] > 3


def test_gaps_by_group_sum_up_to_the_whole(project: Path) -> None:
    SimulatedRound().lay_out(evaluate(capabilities={}))
    metrics, gaps = read("reports/metrics.json"), read("data/evaluate/gaps.json")
    whole = metrics["student"]["score"] - metrics["teacher"]["score"]
    mean = sum(line["gap"]["mean"] * line["rows"] for line in gaps) / 400
    assert mean == pytest.approx(whole, abs=1e-5)
    assert all(line["gap"]["low"] <= line["gap"]["mean"] <= line["gap"]["high"] for line in gaps)
    assert [line["gap"]["mean"] for line in gaps] == sorted(line["gap"]["mean"] for line in gaps)
    assert metrics["group_gaps"] == gaps
    assert not Path("data/evaluate/capabilities.json").exists()


def test_the_report_has_their_tables(project: Path) -> None:
    SimulatedRound(tasks=("facts", "sums")).lay_out(evaluate())
    html = render().read_text()
    for text in ("Capabilities", "long context", "Gaps with intervals", "length characters"):
        assert text in html, text
    assert "Verdicts of the judge" not in html
    text = Path("reports/report.md").read_text()
    assert "## Capabilities" in text and "## Gaps between teacher and student" in text
    SimulatedRound().lay_out(EvaluateParams(bootstrap=200))
    html = render().read_text()  # of a round without them nothing is left
    assert "Capabilities" not in html and "Gaps with intervals" not in html


def test_a_capability_without_rows_or_with_an_unknown_metric_is_refused(project: Path) -> None:
    with pytest.raises(UserError, match="'recall' has no test row"):
        SimulatedRound().lay_out(evaluate(capabilities={"recall": {"tasks": ["facts"]}}))
    with pytest.raises(UserError, match="did you mean 'format'"):
        SimulatedRound().lay_out(evaluate(capabilities={"form": {"metric": "formal"}}))
    with pytest.raises(ParamsError, match="give tasks, groups, longest or metric"):
        evaluate(capabilities={"all": {}})
    with pytest.raises(ParamsError, match="a metric is there twice"):
        evaluate(metrics=[{"type": "verifier"}, {"type": "verifier"}])


def test_carbon_is_energy_at_an_assumed_intensity() -> None:
    energy = {"meters": ["NVML"], "joules_per_token": {"teacher": 0.9, "student": 0.18}}
    timings = TIMINGS | {"energy": energy}
    record = Prices(grams_per_kwh=480).cost_of_round(TOKENS, STAGES, timings)
    # 0.9 J a token are 0.25 kWh a million tokens
    assert record["grams_per_million_tokens"] == {"teacher": 120.0, "student": 24.0}
    assert "grams_per_million_tokens" not in Prices().cost_of_round(TOKENS, STAGES, timings)
    without = Prices(grams_per_kwh=480).cost_of_round(TOKENS, STAGES, TIMINGS)
    assert "grams_per_million_tokens" not in without and "judges_cost" not in without
    judged = Prices().cost_of_round(TOKENS | {"judged": 0.5}, STAGES, TIMINGS)
    assert judged["judges_cost"] == 0.5
    assert judged["cost"] == pytest.approx(judged["machine_cost"] + 0.5, rel=1e-3)
