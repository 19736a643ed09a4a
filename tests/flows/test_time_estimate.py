"""How long a round will take is said before it starts, from its work and the machine's speed."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.records import UNLABELLED, Row, row_id, write_rows
from cohobate.dvc_bridge import versioning
from cohobate.models import checkpoints
from flows import planned_sizes, recipes
from flows.overrides import temporarily
from flows.time_estimate import Machine, Round, estimate_time

ROOT = Path(__file__).parents[2]
AVX2, AMX = Machine("float32", 80.0, 2), Machine("bfloat16", 800.0, 2)
RECIPES = [None, *sorted(recipes.listed(ROOT))]


@pytest.fixture
def default() -> dict[str, Any]:
    return params.load(ROOT / "params.yaml")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, project: Path):
    """Return the lines for a document on a machine, of all stages or some."""
    nodes = versioning.stages(ROOT)

    def lines(document: dict[str, Any], machine: Machine, only: set[str] | None = None) -> list:
        monkeypatch.setattr(Machine, "here", classmethod(lambda _: machine))
        monkeypatch.setattr(checkpoints, "accelerator", lambda: "cpu")
        return estimate_time(nodes, document, only or {node.address for node in nodes}, project)

    return lines


def minutes(line: str) -> float:
    low, high = map(int, re.findall(r"(\d+) to (\d+) minutes", line)[0])
    return (low + high) / 2


def test_the_default_round_takes_about_what_was_measured(on, default) -> None:
    slow, *shorter = on(default, AVX2)
    assert 20 < minutes(slow) < 40 and "float32 at 80 GFLOP/s" in slow  # measured: 29
    (fast,) = on(default, AMX)  # not long enough to ask for less
    assert 5 < minutes(fast) < 11  # measured: 7
    assert any("collect.split.unlabelled=3500" in line for line in shorter)
    assert any("train.kd.updates=110" in line for line in shorter)


def test_stages_that_are_up_to_date_take_no_time(on, default) -> None:
    (line,) = on(default, AVX2, {"train@kd", "evaluate"})
    assert minutes(line) < minutes(on(default, AVX2)[0]) / 2


def test_more_seeds_and_a_live_teacher_take_longer(on, default) -> None:
    def kd(**changes: Any) -> float:
        document = default | {"train": default["train"] | {"kd": default["train"]["kd"] | changes}}
        return Round(document, Path()).work("train@kd").gflop

    assert kd(targets="models/adapt/main") > 2 * kd()
    three = Round(default | {"seeds": [1, 2, 3]}, Path()).work("train@kd").gflop
    assert three == pytest.approx(3 * kd())


def test_rows_that_are_there_are_counted(project, default) -> None:
    before = Round(default, project).work("generate@main").gflop
    prompts = [f"Definition: {n} {'a small thing ' * 12}" for n in range(700)]
    write_rows(UNLABELLED, [Row(id=row_id(p), prompt=p) for p in prompts])
    after = Round(default, project).work("generate@main").gflop
    assert 0.1 < after / before < 0.3


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_an_estimate(recipe, project) -> None:
    root = project
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    with temporarily(root, [], str(ROOT / recipe) if recipe else None):
        document = params.load(root / "params.yaml")
    known = Round(document, root)
    phases = [f"train@{name}" for name in document["train"]]
    for address in ("adapt@main", "generate@main", "capture@main", *phases, "evaluate", "export"):
        untuned = address == "adapt@main" and document["adapt"]["type"] == "none"
        served = "@main" in address and "endpoint" in document["teachers"]["main"]
        given = document["generate"].get("reference_answers") == "keep"
        given = given and document["generate"].get("prompts") == "labelled"
        # each task's prompts go to another teacher
        given = given or "routes" in document["generate"]
        kept = address == "generate@main" and given
        text_alone = address == "capture@main" and not document["teachers"]["main"].get(
            "signals", True
        )
        assert (known.work(address).gflop > 0) is not any((untuned, served, kept, text_alone)), (
            address
        )


def test_what_is_not_known_is_not_estimated(on, default, monkeypatch) -> None:
    teachers = {"main": default["teachers"]["main"] | {"model": "someone/large"}}
    assert on(default | {"teachers": teachers}, AVX2) == []
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "cuda")
    nodes = versioning.stages(ROOT)
    assert estimate_time(nodes, default, {node.address for node in nodes}, Path()) == []


def test_nothing_is_measured_for_a_round_of_seconds(default, monkeypatch) -> None:
    monkeypatch.setattr(Machine, "here", classmethod(lambda _: pytest.fail("measured")))
    assert estimate_time(versioning.stages(ROOT), default, {"filter", "curriculum"}, Path()) == []


def test_a_models_size_is_read_off_its_configuration(project, make_model, tokenizer) -> None:
    model = make_model(tokenizer)
    (project / "teacher").mkdir()
    config = {k: v for k, v in model.config.to_dict().items() if k != "dtype"}
    (project / "teacher/config.json").write_text(json.dumps(config, default=str))
    size = planned_sizes.size_of(planned_sizes.config_of("teacher", project))
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert size.parameters == model.num_parameters() - norms
