"""What does not fit masked models, or encoders as teachers, is refused before any work."""

from typing import Any, get_args

import pytest

from cohobate import params
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.params import ParamsError
from cohobate.teachers.teacher import Teacher, Teachers
from tasks.preflight.classifiers import check_student_kind
from tasks.preflight.masked import FORMS, check_masked

ROWS = "data/collect/labelled.jsonl"
TEACHERS = {
    "main": {"model": "x", "kind": "classifier"},
    "masked": {"model": "x", "kind": "masked"},
}
DOCUMENT: dict[str, Any] = {
    "teachers": TEACHERS,
    "generate": {"prompts": "labelled", "reference_answers": "keep"},
    "evaluate": {"student": "student", "metrics": [{"type": "verifier"}]},
}
MLM = {"method": "mlm"}
DISTILLED = {
    "method": "mlm",
    "targets": "models/adapt/masked",
    "terms": [{"type": "forward_kl"}, {"type": "hidden_mse"}],
}
CLASSIFY = {"method": "classify", "from": "train/general"}


def phases(**methods: Any) -> dict[str, Any]:
    common = {"from": "init_student", "rows": ROWS, "targets": ROWS, "updates": 1}
    return {
        f"train.{name}": params.validated(Method, common | fields, f"train.{name}")
        for name, fields in methods.items()
    }


def check(kind: str = "masked", document: dict[str, Any] | None = None, **methods: Any) -> None:
    document = DOCUMENT | (document or {})
    teachers = params.validated(Teachers, document["teachers"], "teachers")
    some = phases(**methods)
    check_student_kind(kind, some, document)
    check_masked(kind, teachers, some, document)


def test_distilberts_phases_are_let_through() -> None:
    check(general=DISTILLED, student=CLASSIFY)
    check(
        general=MLM | {"from": "adapt/masked"}, student=CLASSIFY | {"targets": "models/adapt/main"}
    )
    # a later round goes on with the champion, a classifier
    check("classifier", general=MLM, student=CLASSIFY)


@pytest.mark.parametrize(
    ("methods", "says"),
    [
        ({"student": {"method": "sft"}}, "predicts single tokens"),
        ({"student": MLM | {"from": "train/sft"}, "sft": {"method": "sft"}}, "masked model"),
        ({"student": DISTILLED | {"targets": "models/adapt/main"}}, "predicts no masked tokens"),
        ({"student": {"method": "sft", "from": "adapt/main"}}, "gives labels"),
    ],
)
def test_a_phase_of_another_kind_is_refused(methods: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        check(**methods)
    assert raised.value.fix


def test_mlm_of_a_model_that_generates_is_refused() -> None:
    with pytest.raises(UserError, match="a model that generates"):
        check_masked("teacher_layers", {}, phases(one=MLM), {})


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"teachers": {"masked": TEACHERS["masked"]}}, "there would be no rows"),
        ({"generate": {"prompts": "unlabelled"}}, "generates no answers"),
        ({"curriculum": {"difficulty": {"type": "teacher_loss"}}}, "log-probability"),
        ({"capture": {"signals": {"type": "labels"}}}, "nothing of it is stored"),
        ({"filter": {"scorer": "models/adapt/main"}}, "neither generates nor reads"),
        ({"curriculum": {"scorer": "models/init_student"}}, "student is an? (encoder|classifier)"),
        ({"preferences": {"type": "best_vs_worst"}}, "prefers no answer"),
        (
            {"evaluate": {"student": "general", "metrics": [{"type": "perplexity"}]}},
            "masked model: it gives no perplexity",
        ),
        (
            {"evaluate": {"student": "general"}, "export": {"forms": [{"type": "onnx"}]}},
            "cannot be exported as onnx",
        ),
        ({"export": {"forms": [{"type": "gguf"}]}}, "cannot be exported as gguf"),
    ],
)
def test_a_setting_that_encoders_cannot_serve_is_refused_with_a_fix(
    document: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as raised:
        check(document=document, general=DISTILLED, student=CLASSIFY)
    assert raised.value.fix


def test_the_forms_are_those_that_export_writes() -> None:
    from tasks.export.stage import AnyForm

    kinds = get_args(get_args(AnyForm)[0])
    able = {
        kind.model_fields["type"].annotation.__args__[0] for kind in kinds if kind.writes_masked
    }
    assert able == FORMS


def test_encoders_as_teachers_store_no_signals() -> None:
    for kind in ("classifier", "masked"):
        assert not Teacher.model_validate({"model": "x", "kind": kind}).signals
        with pytest.raises(ParamsError, match="no distributions of an answer's tokens"):
            params.validated(Teacher, {"model": "x", "kind": kind, "signals": True}, "teachers.x")
        with pytest.raises(ParamsError, match="weights here"):
            params.validated(Teacher, {"model": "x", "kind": kind, "endpoint": "http://a"}, "t")
