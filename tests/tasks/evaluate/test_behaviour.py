"""Robustness, memorisation, the router, mistakes and cost, on rows made by hand."""

import random

import numpy as np
import pytest

from cohobate.data.messages import Message
from cohobate.data.records import Row
from cohobate.params import ParamsError, validated
from cohobate.scoring.metrics import Bleu, ChrF, Rouge
from cohobate.scoring.verifiers import Label
from tasks.evaluate.cost import Prices, cost_per_kept_point
from tasks.evaluate.memorisation import Memorisation
from tasks.evaluate.mistakes import Mistake, Mistakes
from tasks.evaluate.perturbations import Case, Distractor, Paraphrase, Typos
from tasks.evaluate.robustness import Robustness, RobustnessScores, longest
from tasks.evaluate.router import Router
from tasks.evaluate.settings import EvaluateParams

TEMPLATE = "Definition: {text}\nCategory:"
WAYS = (
    Typos(type="typos", rate=0.3),
    Case(type="case"),
    Case(type="case", to="lower"),
    Distractor(type="distractor", sentences=("It rained.",), repeat=2),
    Paraphrase(type="paraphrase", templates=("Meaning: {text}\nKind:",)),
)


def row(text: str, answer: str = " animal", id_: str = "r") -> Row:
    return Row(id=id_, prompt=TEMPLATE.replace("{text}", text), answer=answer)


def test_only_the_text_of_a_prompt_is_changed() -> None:
    robust = Robustness(rows=1, template=TEMPLATE, perturbations=WAYS)
    prompts = {name: changed.prompt for name, changed in robust.variants([row("A Small rodent")])}
    assert prompts["case 1"] == "Definition: A SMALL RODENT\nCategory:"
    assert prompts["case 2"] == "Definition: a small rodent\nCategory:"
    assert prompts["distractor"] == "Definition: It rained. It rained. A Small rodent\nCategory:"
    assert prompts["paraphrase"] == "Meaning: A Small rodent\nKind:"
    assert prompts["typos"] != "Definition: A Small rodent\nCategory:"
    assert str(prompts["typos"]).startswith("Definition: A ")
    assert robust.variants([row("A Small rodent")]) == robust.variants([row("A Small rodent")])


def test_of_a_conversation_the_last_turn_is_changed() -> None:
    turns = (Message(role="system", content="Be Brief"), Message(role="user", content="Is it Red"))
    robust = Robustness(rows=1, template=TEMPLATE, perturbations=WAYS[2:3])
    [(_, changed)] = robust.variants([Row(id="c", prompt=turns, answer="yes")])
    assert [turn.content for turn in changed.prompt] == ["Be Brief", "is it red"]  # type: ignore[union-attr]


def test_typos_keep_the_ends_of_words() -> None:
    typos = Typos(type="typos", rate=1.0)
    for number in range(50):
        text = typos.change("rodent keyboard", "{text}", random.Random(number))
        one, other = text.split()
        assert one != "rodent" or other != "keyboard"
        assert (one[0], one[-1], other[0], other[-1]) == ("r", "t", "k", "d")


def test_drops_are_paired_and_side_by_side() -> None:
    teacher, student = np.ones((1, 100)), np.ones((2, 100))
    student[:, 50:] = 0.0
    changed = {"typos": {"teacher": np.ones((1, 50)), "student": np.zeros((2, 50))}}
    scores = RobustnessScores(
        {"teacher": teacher, "student": student}, changed, chosen=list(range(50)),
        long=list(range(20)), draws=500, seed=0,
    )  # fmt: skip
    typos, long = scores.table()
    assert typos["drop"]["teacher"] == {"mean": 0, "low": 0, "high": 0}
    assert typos["drop"]["student"]["mean"] == 1
    assert typos["students_extra_drop"]["low"] == 1
    assert long["variant"] == "longest test rows"
    assert long["drop"]["student"]["mean"] == pytest.approx(30 / 80 - 1)
    assert long["students_extra_drop"]["mean"] == pytest.approx(0 - 50 / 80)
    assert longest([row("ab"), row("abc"), row("a"), row("abc")], 0.5) == [1, 3]


def test_copies_are_runs_of_words() -> None:
    copies = Memorisation(words=3).index(["the quick brown fox jumps", "over the lazy dog"])
    assert copies.longest("see The quick brown fox run") == 4
    assert copies.longest("fox jumps over the") == 0  # across two answers
    assert copies.longest("the lazy") == 0
    figures = copies.figures(["over the lazy dog", "a cat", "one two three"])
    assert figures == {
        "answers": 3, "long_enough": 2, "copied_share": 0.5, "longest_run": 4,
        "whole_share": 0.333333,
    }  # fmt: skip
    assert copies.figures(["dog"])["copied_share"] is None


def test_the_router_sends_what_the_student_is_sure_of() -> None:
    chance = np.random.default_rng(0)
    sure = chance.random((1, 2000))
    student = (chance.random((1, 2000)) < sure).astype(float)  # as right as it is sure
    teacher = (chance.random(2000) < 0.8).astype(float)
    router = Router(floor=1.0, points=10)
    figures = router.judge(sure, student, teacher, 500)
    assert figures["share"] == pytest.approx(0.4, abs=0.06)  # above .6 it is right in .8 of all
    assert figures["kept"]["low"] < 1 < figures["kept"]["high"]
    curve = router.curve(sure, student, teacher)
    assert (curve[0]["share"], curve[-1]["share"]) == (0, 1)
    assert curve[0]["score"] == pytest.approx(teacher.mean(), abs=1e-6)
    assert curve[-1]["score"] == pytest.approx(student.mean(), abs=1e-6)
    worse = router.judge(sure, np.zeros((1, 2000)), np.ones(2000), 500)
    assert worse["share"] == 0
    assert worse["thresholds"] == [None, None]


def test_mistakes_come_in_clusters_with_their_nearest_lessons() -> None:
    animals = ["small furry rodent", "furry rodent of deserts", "striped furry rodent"]
    tools = ["sharp steel blade", "steel blade for bread", "curved steel blade"]
    mistakes = [
        Mistake(id=str(n), prompt=f"Definition: {text}", group="", reference=" a", teacher=" a",
                student=" b")
        for n, text in enumerate(animals + tools)
    ]  # fmt: skip
    lessons = [row("a rodent of the fields", id_="rodent"), row("blade of iron", id_="blade")]
    clustered, clusters = Mistakes(clusters=2).clustered(mistakes, lessons)
    assert len({m.cluster for m in clustered[:3]}) == len({m.cluster for m in clustered[3:]}) == 1
    assert clustered[0].cluster != clustered[5].cluster
    assert clustered[0].nearest[0].id == "rodent"
    assert clustered[3].nearest[0].id == "blade"
    assert sorted(cluster["rows"] for cluster in clusters) == [3, 3]
    assert {"rodent", "steel"} < {term for cluster in clusters for term in cluster["terms"]}
    assert clusters[0]["confused"] == [{"reference": "a", "student": "b", "rows": 3}]
    assert Mistakes().clustered([], lessons) == ([], [])


def test_pictures_are_compared_by_their_captions() -> None:
    mistakes = [
        Mistake(id=str(n), prompt="Category:", teacher_prompt=f"Emoji: {text}", images=("a.png",),
                group="", reference=" a", teacher=" a", student=" b")
        for n, text in enumerate(["red apple", "green apple", "grey wolf", "wolf at night"])
    ]  # fmt: skip
    lessons = [
        row("Category:", id_=id_).model_copy(update={"teacher_prompt": text, "images": ("b.png",)})
        for id_, text in (("fruit", "apple tree"), ("animal", "howling wolf"))
    ]
    clustered, _ = Mistakes(clusters=2).clustered(mistakes, lessons)
    assert [m.nearest[0].id for m in clustered] == ["fruit", "fruit", "animal", "animal"]
    assert clustered[0].cluster == clustered[1].cluster != clustered[2].cluster


TOKEN_COUNTS = {
    "taught": {"rows": 10, "prompt_tokens": 1_000_000, "answer_tokens": 500_000},
    "request": {"prompt_tokens": 20.0, "answer_tokens": 10.0},
}
TIMINGS = {"models": {"teacher": {"tokens_per_second": 100}, "student": {"tokens_per_second": 400}}}


def test_break_even_by_hand() -> None:
    stages = {"train": {"seconds": 2000.0, "own_seconds": 1800.0}, "old": {"seconds": 1800.0}}
    costs = Prices(machine_hour=0.36).cost_of_round(TOKEN_COUNTS, stages, TIMINGS)
    assert costs["cost"] == costs["machine_cost"] == 0.36
    assert costs["cost_per_million_tokens"] == {"teacher": 1.0, "student": 0.25}
    assert costs["break_even_tokens"] == 480_000
    assert costs["break_even_requests"] == 48_000


def test_a_teacher_behind_an_api_is_paid_by_the_token() -> None:
    prices = Prices(machine_hour=0.36, teacher_million_in=1.0, teacher_million_out=4.0)
    costs = prices.cost_of_round(TOKEN_COUNTS, {"train": {"seconds": 3600.0}}, TIMINGS)
    assert costs["teacher_tokens_cost"] == 3.0
    assert costs["cost_per_million_tokens"]["teacher"] == 6.0  # two prompt tokens to each written
    slow = {"models": {"teacher": {"tokens_per_second": 4}, "student": {"tokens_per_second": 4}}}
    assert Prices().cost_of_round(TOKEN_COUNTS, {}, slow)["break_even_tokens"] is None


def test_what_a_kept_point_costs() -> None:
    assert cost_per_kept_point(3.0, 0.75) == {"teacher_cost_per_kept_point": 0.04}
    for cost, retention in ((0.0, 0.75), (3.0, None), (3.0, -0.1)):
        assert cost_per_kept_point(cost, retention) == {}


def test_metrics_of_longer_answers() -> None:
    label = Label(type="label")
    rouge, bleu, chrf = Rouge(type="rouge_l"), Bleu(type="bleu"), ChrF(type="chrf")
    for metric in (rouge, bleu, chrf):
        assert metric.score("the cat sat", "the cat sat", label) == pytest.approx(1)
        assert metric.score("xyz", "the cat sat", label) < 0.1
    assert rouge.score("the cat ran home", "the cat sat home", label) == pytest.approx(0.75)


def test_what_scores_no_answer_cannot_decide() -> None:
    with pytest.raises(ParamsError, match="cannot come first"):
        validated(EvaluateParams, {"metrics": [{"type": "label_accuracy"}]}, "evaluate")
    likelihood = validated(EvaluateParams, {"metrics": [{"type": "perplexity"}]}, "evaluate")
    assert likelihood.likelihood_metric and not likelihood.model_metrics
