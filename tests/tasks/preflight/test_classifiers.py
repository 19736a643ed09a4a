"""What does not fit the kind of the student is refused before any work."""

from typing import Any, get_args

import pytest

from cohobate import params
from cohobate.errors import UserError
from cohobate.methods.train import Method
from tasks.preflight.classifiers import FORMS, check_student_kind

ROWS = "data/collect/labelled.jsonl"


def phases(**methods: Any) -> dict[str, Any]:
    common = {"from": "init_student", "rows": ROWS, "targets": ROWS, "updates": 1}
    return {
        f"train.{name}": params.validated(Method, common | fields, f"train.{name}")
        for name, fields in methods.items()
    }


CLASSIFY = {"method": "classify"}


def test_a_round_of_classifiers_is_let_through() -> None:
    document = {"evaluate": {"metrics": [{"type": "verifier"}]}}
    check_student_kind("classifier", phases(one=CLASSIFY, two=CLASSIFY), document)
    tuned = {"method": "sft", "from": "adapt/main"}  # an assistant of the teacher's kind
    check_student_kind("classifier", phases(one=CLASSIFY, helper=tuned), document)


@pytest.mark.parametrize(
    ("kind", "method", "says"),
    [
        ("classifier", {"method": "sft"}, "learns the tokens"),
        ("teacher_layers", CLASSIFY, "starts from a model that generates"),
        ("classifier", CLASSIFY | {"from": "adapt/main"}, "starts from a model that generates"),
    ],
)
def test_a_method_of_another_kind_is_refused(kind: str, method: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        check_student_kind(kind, phases(one=method), {})
    assert "method" in raised.value.where


@pytest.mark.parametrize(
    "document",
    [
        {"evaluate": {"metrics": [{"type": "perplexity"}]}},
        {"evaluate": {"harness": {"tasks": ["hellaswag"]}}},
        {"export": {"forms": [{"type": "safetensors"}, {"type": "gguf"}]}},
        {"curriculum": {"scorer": "models/init_student"}},
        {"collect": {"sources": {"a": {}, "b": {}}}},
    ],
)
def test_a_setting_that_needs_text_is_refused_with_a_fix(document: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="the student is a classifier") as raised:
        check_student_kind("classifier", phases(one=CLASSIFY), document)
    assert raised.value.fix
    check_student_kind("teacher_layers", {}, document)


def test_the_forms_are_those_that_export_writes() -> None:
    from tasks.export.stage import AnyForm

    kinds = get_args(get_args(AnyForm)[0])
    able = {
        kind.model_fields["type"].annotation.__args__[0]
        for kind in kinds
        if kind.writes_classifiers
    }
    assert able == FORMS


LABELS = {"capture": {"signals": {"type": "labels"}}}


@pytest.mark.parametrize(
    "document",
    [
        LABELS | {"evaluate": {"fidelity": {"type": "stored"}}},
        LABELS | {"collect": {"sources": {"a": {}, "b": {}}}},
    ],
)
def test_what_signals_of_labels_lack_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(UserError) as raised:
        check_student_kind("teacher_layers", {}, document)
    assert raised.value.fix


@pytest.mark.parametrize(
    ("signals", "method", "says"),
    [
        ({"type": "top_k"}, CLASSIFY, "classify learns distributions over labels"),
        ({"type": "hidden"}, CLASSIFY, "capture stores hidden"),
    ],
)
def test_signals_of_another_form_than_the_method_learns_are_refused(
    signals: dict[str, Any], method: dict[str, Any], says: str
) -> None:
    from cohobate.teachers.signal_store.settings import CaptureParams
    from cohobate.teachers.teacher import Teacher
    from tasks.preflight.phases import check_phases

    form = params.validated(CaptureParams, {"signals": signals}, "capture").signals
    some = phases(one=method | {"targets": "data/capture/main"})
    with pytest.raises(UserError, match=says) as raised:
        check_phases(some, {"main": Teacher(model="tiny")}, form)
    assert "capture.signals" in raised.value.fix


def test_a_causal_student_may_learn_signals_of_labels_with_any_tokenizer() -> None:
    from cohobate.teachers.signal_store.label_form import StoredLabels
    from cohobate.teachers.teacher import Teacher
    from tasks.preflight.phases import check_phases

    kd = {"method": "kd", "terms": [{"type": "forward_kl"}], "targets": "data/capture/main"}
    form = StoredLabels(type="labels", by="votes")
    # text alone is enough for votes
    check_phases(phases(one=kd), {"main": Teacher(model="tiny", signals=False)}, form)
    with pytest.raises(UserError, match="provides text only"):
        likelihood = StoredLabels(type="labels")  # of each text, which needs the weights
        check_phases(phases(one=kd), {"main": Teacher(model="tiny", signals=False)}, likelihood)


ROUTE = {"combine": {"type": "route", "groups": {"*": "main"}}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"terms": [{"type": "uld"}]}, "averaged over teachers, and of any tokenizer"),
        ({"targets": "data/capture", "teachers": {"main": 1.0}} | ROUTE, "averaged over teachers"),
        ({"method": "classify", "targets": "models/adapt/main"}, "the teacher main generates"),
    ],
)
def test_what_cannot_learn_signals_of_labels_is_refused(changes: dict[str, Any], says: str) -> None:
    from cohobate.teachers.signal_store.label_form import StoredLabels
    from cohobate.teachers.teacher import Teacher
    from tasks.preflight.phases import check_phases

    kd = {"method": "kd", "terms": [{"type": "forward_kl"}], "targets": "data/capture/main"}
    fields = kd | changes
    if fields["method"] == "classify":
        del fields["terms"]
    with pytest.raises(UserError, match=says) as raised:
        form = StoredLabels(type="labels")
        check_phases(phases(one=fields), {"main": Teacher(model="tiny")}, form, keep_tokenizer=True)
    assert raised.value.fix
