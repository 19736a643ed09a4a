import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cohobate.data.records import DEV, VERDICT, Row, row_id, write_json, write_rows
from cohobate.errors import UserError
from cohobate.evaluation.gate import Gate, TaskGate
from cohobate.evaluation.timing import Timing
from cohobate.generation.requests import Decoding
from cohobate.scoring.metrics import Perplexity, TokenF1, VerifierAccuracy
from cohobate.scoring.verifiers import Label, Task
from tasks.challenge.guards import Guards
from tasks.challenge.latency import COUNTED, LATENCY, Latency, objection
from tasks.challenge.stage import ChallengeParams, TaskConditions, judge, run

ALIKE = {"parameters": 100.0, "flops_per_token": 10.0, "blocks": 5.0, "bits_per_byte": 4.0}
LABELS = Task(verifier=Label(type="label"))
EIGHT = Decoding(max_tokens=8)
ACCURACY = VerifierAccuracy()
COUNTED_ALIKE = dict.fromkeys(COUNTED, 1.0)


def verdict(
    champion: float, seeds: dict[str, float], grown: dict[str, float] = ALIKE, **params
) -> dict:
    rng = np.random.default_rng(0)
    rows = rng.random(400)
    scores = {name: (rows < share).astype(float) for name, share in seeds.items()}
    scores["champion"] = (rows < champion).astype(float)
    figures = dict.fromkeys(seeds, ALIKE | grown) | {"champion": ALIKE}
    return judge(ChallengeParams(**params), scores, figures)


def run_stage(*, metric=ACCURACY, decoding=EIGHT, **params) -> dict:
    challenge = ChallengeParams(threads=1, **params)
    run(challenge, LABELS, [1], student="kd", metric=metric, decoding=decoding, gate=Gate())
    return json.loads(VERDICT.read_text())


def test_a_clear_gain_promotes_the_best_seed() -> None:
    result = verdict(0.6, {"1": 0.75, "2": 0.77, "3": 0.76})
    assert result["promote"]
    assert result["seed"] == 2
    assert result["gain"]["low"] > 0
    for name, score in result["intervals"].items():
        assert score["low"] < result[name] == score["mean"] < score["high"]
    assert result["challenger"] == pytest.approx(np.mean([*result["by_seed"].values()]), abs=1e-6)


def test_each_task_has_to_pass_the_gate_against_the_champion() -> None:
    rows = np.random.default_rng(0).random(800)
    # the new student gains on the words and loses on the sums
    better = np.where(np.arange(800) < 500, 0.85, 0.5)
    scores = {"1": (rows < better).astype(float), "champion": (rows < 0.6).astype(float)}
    figures = {"1": ALIKE, "champion": ALIKE}
    tasks = ["words"] * 500 + ["sums"] * 300
    free = judge(ChallengeParams(), scores, figures, None, TaskConditions(tasks))
    assert free["promote"] and set(free["tasks"]) == {"words", "sums"}
    assert free["tasks"]["words"]["gain"]["low"] > 0 > free["tasks"]["sums"]["gain"]["high"]
    gate = Gate(each_task=TaskGate(min_gain=-0.02))
    held = judge(ChallengeParams(), scores, figures, None, TaskConditions(tasks, gate))
    assert not held["promote"] and held["why"].endswith("the task sums does not pass the gate")
    loose = Gate(each_task=TaskGate(min_gain=-0.5, min_retention=0.5))
    assert judge(ChallengeParams(), scores, figures, None, TaskConditions(tasks, loose))["promote"]
    one = TaskConditions([None] * 800)
    assert "tasks" not in judge(ChallengeParams(), scores, figures, None, one)


@pytest.mark.parametrize("share", [0.6, 0.605, 0.5])
def test_the_champion_stays_when_the_gain_could_be_chance(share: float) -> None:
    assert not verdict(0.6, {"1": share})["promote"]


def test_seeds_that_disagree_do_not_promote() -> None:
    assert not verdict(0.6, {"1": 0.5, "2": 0.8})["promote"]


def test_a_least_gain_can_be_asked_for() -> None:
    assert not verdict(0.6, {"1": 0.65}, min_gain=0.1)["promote"]


@pytest.mark.parametrize("name", ALIKE)
def test_a_student_that_grew_or_forgot_is_refused_by_name(name: str) -> None:
    grown = {name: 1.6 * ALIKE[name]}
    result = verdict(0.6, {"1": 0.9}, grown)
    assert not result["promote"]
    assert f"{name}: 1.60 times the champion's" in result["why"]
    assert verdict(0.6, {"1": 0.9}, grown, guards=Guards(**{name: 1.6}))["promote"]


def test_both_answer_the_dev_rows(project: Path, model, tokenizer) -> None:
    from cohobate.models import checkpoints

    for folder in ("models/init_student", "models/train/kd/seed-1"):
        checkpoints.save(model, tokenizer, Path(folder), {})
    rows = [Row(id=row_id(p), prompt=p, answer="x") for p in ("one", "two", "three")]
    write_rows(DEV, rows)
    result = run_stage()
    assert result["gain"] == {"low": 0, "mean": 0, "high": 0}  # it met itself
    assert result["growth"] == dict.fromkeys(ALIKE, 1.0)
    assert not result["promote"]


def test_the_metric_that_decides_scores_the_answers(project: Path, model, tokenizer) -> None:
    from cohobate.generation.decoding import generate_answers
    from cohobate.models import checkpoints

    for folder in ("models/init_student", "models/train/kd/seed-1"):
        checkpoints.save(model, tokenizer, Path(folder), {})
    answers = dict(generate_answers(model, tokenizer, ["one", "two"], EIGHT))
    prompts = {"one": answers[0].text, "two": answers[1].text}
    rows = [Row(id=row_id(p), prompt=p, answer=f"{text} and so on") for p, text in prompts.items()]
    write_rows(DEV, rows)
    assert run_stage()["challenger"] == 0
    assert 0 < run_stage(metric=TokenF1(type="token_f1"))["challenger"] < 1


def test_both_answer_as_evaluate_lets_them(project: Path, model, tokenizer) -> None:
    from cohobate.fast.frozen import load_frozen
    from cohobate.generation.decoding import generate_answers
    from cohobate.models import checkpoints

    for folder in ("models/init_student", "models/train/kd/seed-1"):
        checkpoints.save(model, tokenizer, Path(folder), {})
    model, _ = load_frozen(Path("models/init_student"), precision="bfloat16")
    long = Decoding(max_tokens=20)
    (_, generated) = next(generate_answers(model, tokenizer, ["one"], long))
    write_rows(DEV, [Row(id=row_id("one"), prompt="one", answer=generated.text)])
    assert run_stage(decoding=long, precision="bfloat16")["challenger"] == 1


def test_each_is_asked_with_the_prefix_that_it_learnt(project: Path, model, tokenizer) -> None:
    from cohobate.fast.frozen import load_frozen
    from cohobate.generation.decoding import generate_answers
    from cohobate.models import checkpoints

    checkpoints.save(model, tokenizer, Path("models/init_student"), {})
    student = Path("models/train/kd/seed-1")
    checkpoints.save(model, tokenizer, student, {"prompt_prefix": "[label] "})
    model, _ = load_frozen(student, precision="bfloat16")
    answers = dict(generate_answers(model, tokenizer, ["[label] one", "[label] two"], EIGHT))
    prompts = ("one", "two")
    rows = [Row(id=row_id(p), prompt=p, answer=answers[n].text) for n, p in enumerate(prompts)]
    write_rows(DEV, rows)
    result = run_stage(precision="bfloat16")
    assert (result["champion"], result["challenger"]) == (0, 1)


def test_a_deeper_student_is_seen_to_be_one(project: Path, model, tokenizer) -> None:
    from cohobate.models import checkpoints

    deeper = copy.deepcopy(model.config)
    deeper.num_hidden_layers += 1
    if getattr(deeper, "layer_types", None):
        deeper.layer_types = [*deeper.layer_types, deeper.layer_types[-1]]
    checkpoints.save(model, tokenizer, Path("models/init_student"), {})
    checkpoints.save(type(model)(deeper), tokenizer, Path("models/train/kd/seed-1"), {})
    write_rows(DEV, [Row(id=row_id("one"), prompt="one", answer="x")])
    result = run_stage()
    blocks = deeper.num_hidden_layers / (deeper.num_hidden_layers - 1)
    assert result["growth"]["blocks"] == pytest.approx(blocks, abs=1e-6)
    assert f"blocks: {blocks:.2f} times the champion's" in result["why"]


SMALLER = {"promote": True, "growth": {"parameters": 0.9, "flops_per_token": 1.0, "blocks": 1.0}}


@pytest.fixture
def timed(project: Path) -> Callable[[float], None]:
    """Have the clock say how much slower the challenger of the verdict is."""

    def write(ratio: float) -> None:
        digest = hashlib.blake2b(VERDICT.read_bytes(), digest_size=12).hexdigest()
        times = {"champion_ms": 10.0, "challenger_ms": 10 * ratio, "ratio": ratio, "allowed": 1.1}
        write_json(LATENCY, {"verdict": digest} | times)

    write_json(VERDICT, SMALLER)
    return write


def test_one_that_is_slower_by_the_clock_is_not_promoted(project: Path, timed) -> None:
    assert objection(project, project / VERDICT) is None  # it was never timed here
    timed(1.1)
    assert objection(project, project / VERDICT) is None
    timed(1.3)
    reason = "latency: 1.30 times the champion's (13.0 ms against 10.0), at most 1.10 allowed"
    assert objection(project, project / VERDICT) == reason


@pytest.mark.parametrize("other", [{"seed": 2}, {"promote": False}, {"growth": COUNTED_ALIKE}])
def test_the_times_of_another_verdict_do_not_count(project: Path, timed, other) -> None:
    timed(1.3)
    write_json(VERDICT, SMALLER | other)
    assert objection(project, project / VERDICT) is None


def test_two_that_are_not_built_alike_are_timed(project: Path, model, tokenizer) -> None:
    from cohobate.models import checkpoints

    for name, folder in {"champion": "models/init_student", "challenger": "models/new"}.items():
        checkpoints.save(model, tokenizer, Path(folder), {"name": name})
    folders = {"champion": Path("models/init_student"), "challenger": Path("models/new")}
    write_json(VERDICT, SMALLER)
    latency = Latency(timing=Timing(seconds=0.1))
    latency.compare(folders, ["one two", "three"], VERDICT, precision="auto", threads=1)
    figures = json.loads(LATENCY.read_text())
    ratio = figures["challenger_ms"] / figures["champion_ms"]
    assert figures["ratio"] == pytest.approx(ratio, abs=1e-3)
    assert 0.2 < figures["ratio"] < 5  # they are the same
    assert figures["allowed"] == 1.1 and figures["number_format"] in ("float32", "bfloat16")


def test_without_answers_there_is_nothing_to_judge_by(project: Path) -> None:
    write_rows(DEV, [Row(id="0" * 16, prompt="one")])
    with pytest.raises(UserError, match="no dev row"):
        run_stage()


def test_where_a_likelihood_decides_the_lower_figure_is_promoted() -> None:
    rng = np.random.default_rng(0)
    champion = rng.normal(3.0, 0.1, 200)
    scores = {"1": champion * 0.8, "2": champion * 0.79, "champion": champion}
    figures = dict.fromkeys(scores, ALIKE)
    result = judge(ChallengeParams(), scores, figures, Perplexity(type="perplexity"))
    assert result["promote"] and result["seed"] == 2
    assert result["champion"] == pytest.approx(np.exp(champion.mean()), rel=1e-4)
    assert result["by_seed"]["2"] < result["by_seed"]["1"] < result["champion"]
    assert 0 < result["gain"]["low"] < 1 and "% lower perplexity" in result["why"]
    worse = scores | {"champion": champion * 0.7}
    assert not judge(ChallengeParams(), worse, figures, Perplexity(type="perplexity"))["promote"]


def test_answers_to_raw_text_cannot_be_scored(project: Path, model, tokenizer) -> None:
    from cohobate.models import checkpoints

    for folder in ("models/init_student", "models/train/kd/seed-1"):
        checkpoints.save(model, tokenizer, Path(folder), {})
    texts = ("animal plant", "person animal a")
    write_rows(DEV, [Row(id=row_id("", text), prompt="", answer=text) for text in texts])
    with pytest.raises(UserError, match="2 dev rows are raw text"):
        run_stage()
    result = run_stage(metric=Perplexity(type="perplexity"))
    assert result["gain"]["mean"] == 0 and not result["promote"]


def test_a_model_without_blocks_does_not_grow() -> None:
    static = {"parameters": 10.0, "flops_per_token": 0.0, "blocks": 0.0}
    assert Guards().growth(static, static) == {
        "parameters": 1.0,
        "flops_per_token": 1.0,
        "blocks": 1.0,
    }
    encoder = static | {"flops_per_token": 50.0, "blocks": 2.0}
    assert Guards().broken(Guards().growth(encoder, static))
    assert not Guards().broken(Guards().growth(static, encoder))
