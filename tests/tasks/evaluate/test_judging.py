"""A judge in `evaluate` and `challenge`: whose answers are compared, and what decides."""

import json
from pathlib import Path

import pytest

from cohobate.data.records import DEV, Row, row_id, write_rows
from cohobate.evaluation.gate import Gate
from cohobate.generation.requests import Decoding
from cohobate.params import ParamsError, validated
from tasks.evaluate.arms import arms_on_disk
from tasks.evaluate.judging import judge_predictions, variant_scores
from tasks.evaluate.predictions import Predictions
from tasks.evaluate.report import render
from tasks.evaluate.settings import EvaluateParams
from tasks.evaluate.write_results import write_results
from tests.loopback_judge import LoopbackJudge
from tests.tasks.evaluate.simulated_round import TASK, SimulatedRound, read


def by_label(texts: list[str]) -> str:
    """Prefer the answer whose label is the longer word: a truth that is known."""
    first, second = (len(text.strip()) for text in texts[1:])
    return json.dumps(
        {"better": "tie" if first == second else "first" if first > second else "second"}
    )


def judged(service: LoopbackJudge, **metric) -> EvaluateParams:
    judge = {"model": "judge", "endpoint": service.url}
    backend = {"type": "openai", "price": {"input": 1.0, "output": 1.0}}
    first = {"type": "win_rate", "judge": judge | {"backend": backend}} | metric
    settings = {"bootstrap": 200, "metrics": [first, {"type": "verifier"}]}
    params: EvaluateParams = validated(EvaluateParams, settings, "evaluate")
    return params


@pytest.mark.parametrize("against", ["teacher", "baseline", "reference"])
def test_every_model_is_compared_with_the_same_one(project: Path, against: str) -> None:
    round_ = SimulatedRound(rows=20, seeds=(1, 2))
    round_.lay_out(EvaluateParams(bootstrap=200))
    rows = round_.test_rows()
    with LoopbackJudge(by_label) as service:
        params = judged(service, against=against)
        arms = arms_on_disk("main", "baseline", "kd", [1, 2])
        judge_predictions(params, TASK, arms, rows)
        sent = service.sent
        judge_predictions(params, TASK, arms, rows)
        assert service.sent == sent
        other = {"teacher": [["a", "bb"]], "student": [["bb", "a"]] * 2}
        variant_scores(params, TASK, rows[:2], other)
    whole = Predictions.read(arms).by_arm
    for arm, seeds in whole.items():
        for seed, own in seeds.items():
            other = whole.get(against, {})
            opponents = other.get(seed) or next(iter(other.values()), None)
            texts = [p.answer for p in opponents] if opponents else [r.answer for r in rows]
            pairs = zip(own, texts, strict=True)
            sizes = [(len(p.answer.strip()), len(text.strip())) for p, text in pairs]
            truth = [(one > two) + (one == two) / 2 for one, two in sizes]
            assert [p.scores["win_rate"] for p in own] == truth, (arm, seed)
    if against != "reference":
        assert {p.scores["win_rate"] for p in next(iter(whole[against].values()))} == {0.5}
    write_results(params, TASK, arms, rows, round_.results(arms))
    metrics = read("reports/metrics.json")
    assert metrics["metric"] == "win_rate"
    if against == "teacher":
        assert metrics["teacher"] == {"score": 0.5, "low": 0.5, "high": 0.5}
    record = read("data/evaluate/judged.json")
    assert record["evaluate.metrics.0"]["cost_usd"] > 0
    assert "evaluate.metrics.0, other prompts" in record
    parameters = read("params.yaml")
    parameters["evaluate"]["metrics"] = params.model_dump(mode="json")["metrics"]
    Path("params.yaml").write_text(json.dumps(parameters))
    html = render().read_text()
    assert "Verdicts of the judge" in html and "win rate by the judge" in html
    assert read("reports/cost.json")["judges_cost"] > 0
    assert "## Verdicts of the judge" in Path("reports/report.md").read_text()


def test_a_sample_of_the_rows_is_judged_where_the_metric_does_not_decide(project: Path) -> None:
    round_ = SimulatedRound(rows=20, seeds=(1,))
    round_.lay_out(EvaluateParams(bootstrap=200))
    with LoopbackJudge(by_label) as service:
        params = judged(service)
        sampled = params.metrics[0].model_copy(update={"rows": 5})
        params = params.model_copy(update={"metrics": (params.metrics[1], sampled)})
        arms = arms_on_disk("main", "baseline", "kd", [1])
        judge_predictions(params, TASK, arms, round_.test_rows())
        with pytest.raises(ParamsError, match="decides, on all rows"):
            judged(service, rows=5)
    for own in (next(iter(s.values())) for s in Predictions.read(arms).by_arm.values()):
        assert sum("win_rate" in p.scores for p in own) == 5
    assert "evaluate.metrics.1" in read("data/evaluate/judged.json")


def test_the_challenge_compares_the_new_student_with_the_champion(
    project: Path, make_model, tokenizer
) -> None:
    from cohobate.models import checkpoints
    from tasks.challenge.stage import ChallengeParams, run

    for seed, folder in enumerate(("models/init_student", "models/train/kd/seed-1")):
        checkpoints.save(make_model(tokenizer, seed=seed), tokenizer, Path(folder), {})
    write_rows(DEV, [Row(id=row_id(p), prompt=p, answer="x") for p in ("one", "two", "three")])
    with LoopbackJudge(lambda texts: json.dumps({"better": "tie"})) as service:
        metric = judged(service).metrics[0]
        challenge = ChallengeParams(threads=1)
        decoding, gate = Decoding(max_tokens=4), Gate()
        run(challenge, TASK, [1], student="kd", metric=metric, decoding=decoding, gate=gate)
        assert service.sent
    verdict = read("reports/challenge.json")
    assert verdict["champion"] == verdict["challenger"] == 0.5
    outcomes = verdict["judged"]["evaluate.metrics.0"]["models"]
    assert outcomes["champion"] == {"identical": 3, "tie": 3}
    assert outcomes["1"]["tie"] == 3
