"""adapt: the teacher is published, tuned on the labelled rows or untouched."""

import json

import pytest
import torch

from cohobate import sealed_folder
from cohobate.backends.endpoint import read_address
from cohobate.data.messages import Message
from cohobate.data.records import (
    ADAPT,
    DEV,
    LABELLED,
    PIN,
    TEACHERS,
    TOKENIZER,
    Row,
    row_id,
    write_json,
    write_rows,
)
from cohobate.data.tokenized import prompt_ids
from cohobate.errors import UserError
from cohobate.methods.teacher_tuning import Tuning
from cohobate.models import checkpoints
from cohobate.models.number_formats import resolve
from cohobate.models.vocabularies import vocabulary_hash
from cohobate.params import ParamsError, validated
from cohobate.scoring.metrics import TokenF1, VerifierAccuracy
from cohobate.scoring.verifiers import Label, Task
from cohobate.students.teacher_layers import TeacherLayers
from cohobate.teachers.teacher import Teacher
from tasks.adapt.stage import run
from tests.cohobate.models.test_chat_templates import STRICT
from tests.tasks.preflight.test_preflight import run_stage as preflight

TASK = Task(verifier=Label(type="label"))
MAIN = ADAPT / "main"
SFT = {"type": "sft", "epochs": 20, "batch_size": 8, "learning_rate": 0.02, "threads": 1}


def rows(count, answered=True):
    prompts = [f"a small {'animal' if n % 2 else 'plant'} {n}\nCategory:" for n in range(count)]
    answers = [" animal" if n % 2 else " plant" for n in range(count)]
    return [
        Row(id=row_id(p), prompt=p, answer=a if answered else None)
        for p, a in zip(prompts, answers, strict=True)
    ]


def look_at(teacher):
    """Run preflight."""
    preflight({"main": teacher}, TeacherLayers(type="teacher_layers", layers=(0,)))


@pytest.fixture
def adapt(project, checkpoint):
    teacher = Teacher(model=str(checkpoint), licence="Apache-2.0", outputs_may_train=True)
    look_at(teacher)
    write_rows(LABELLED, rows(16))
    write_rows(DEV, rows(10))

    def adapted(metric=VerifierAccuracy(), **tuning):  # noqa: B008
        run("main", teacher, validated(Tuning, tuning, "adapt"), TASK, metric)
        return json.loads((MAIN / "summary.json").read_text())

    return adapted


def test_an_untuned_teacher_is_the_same_model(adapt, checkpoint):
    summary = adapt(type="none", threads=1)
    weights = "model.safetensors"
    assert (MAIN / weights).read_bytes() == (checkpoint / weights).read_bytes()
    tried = {"dev_rows": 10, "dev_score": 0.0, "number_format": resolve("auto", "cpu")}
    assert summary == {"tuned": False, "rows": 0, **tried}
    provenance = json.loads((MAIN / "provenance.json").read_text())
    assert provenance["fingerprint"] == checkpoints.fingerprint(checkpoint)
    assert provenance["licence"] == "Apache-2.0"


def test_the_dev_figure_is_of_the_metric_that_decides(adapt):
    halves = [row.model_copy(update={"answer": f"{row.answer} kingdom"}) for row in rows(10)]
    write_rows(DEV, halves)  # one of two words is right: 2/3, and never by the verifier
    assert adapt(TokenF1(type="token_f1"), **SFT)["dev_score"] >= 0.6


def test_a_tuned_teacher_has_learnt_the_task(adapt, model):
    summary = adapt(**SFT, freeze={"embeddings": True, "layers": 1})
    assert summary["dev_score"] >= 0.9 and summary["rows"] == 16
    tuned, _ = checkpoints.load(checkpoints_folder := MAIN)
    sealed_folder.verify(checkpoints_folder)
    halved = model.to(torch.bfloat16).float()
    first, last = ("model.layers.0.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight")
    assert torch.equal(tuned.get_parameter(first), halved.get_parameter(first))
    assert not torch.equal(tuned.get_parameter(last), halved.get_parameter(last))
    embeddings = (m.get_input_embeddings().weight for m in (tuned, halved))
    assert torch.equal(*embeddings)


def test_an_upcycled_teacher_is_tuned_as_a_mixture_of_experts(adapt):
    summary = adapt(**SFT, upcycle={"experts": 2})
    assert summary["dev_score"] >= 0.9
    tuned, _ = checkpoints.load(MAIN)
    assert type(tuned).__name__ == "MixtralForCausalLM"
    experts = tuned.model.layers[1].mlp.experts
    assert not torch.equal(experts.down_proj[0], experts.down_proj[1])


def test_what_cannot_be_upcycled_is_refused(adapt):
    with pytest.raises(ParamsError, match="experts are no linear layers"):
        adapt(**SFT, upcycle={}, adapter={"type": "lora"})
    with pytest.raises(ParamsError, match="at most experts"):
        adapt(**SFT, upcycle={"experts": 2, "per_token": 3})


def test_the_same_bytes_every_time(adapt):
    adapt(**SFT, rows=8)
    first = {path.name: path.read_bytes() for path in MAIN.iterdir()}
    torch.manual_seed(99)
    adapt(**SFT, rows=8)
    assert {path.name: path.read_bytes() for path in MAIN.iterdir()} == first
    assert json.loads(first["summary.json"])["rows"] == 8


def test_without_labels_there_is_nothing_to_tune_on(adapt):
    write_rows(LABELLED, [])
    with pytest.raises(UserError, match="no labelled rows") as refused:
        adapt(**SFT)
    assert "adapt.type=none" in refused.value.fix
    write_rows(DEV, rows(3, answered=False))
    assert adapt(type="none") == {"tuned": False, "rows": 0}


def test_of_a_teacher_behind_an_endpoint_the_address_is_published(project):
    teacher = Teacher(
        model="large-1",
        endpoint="https://api.example.com/v1",
        key="EXAMPLE_KEY",
        licence="their terms",
        outputs_may_train=True,
    )
    write_json(TEACHERS / "main" / PIN, {"teacher": {}, "student": {}})
    run("main", teacher, validated(Tuning, {"type": "none"}, "adapt"), TASK, VerifierAccuracy())
    address = json.loads((MAIN / "endpoint.json").read_text())
    assert (address["url"], address["key"]) == ("https://api.example.com/v1", "EXAMPLE_KEY")
    sealed_folder.verify(MAIN)
    with pytest.raises(UserError, match="cannot be tuned"):
        run("main", teacher, validated(Tuning, SFT, "adapt"), TASK, VerifierAccuracy())


def test_of_a_served_teacher_with_signals_the_tokenizer_is_published_too(project, tokenizer):
    teacher = Teacher(
        model="large-1",
        endpoint="https://api.example.com/v1",
        signals=True,
        scoring="vllm",
        licence="their terms",
    )
    tokenizer.save_pretrained(TEACHERS / "main" / TOKENIZER)
    write_json(TEACHERS / "main" / PIN, {"teacher": {}, "student": {}})
    run("main", teacher, validated(Tuning, {"type": "none"}, "adapt"), TASK, VerifierAccuracy())
    assert read_address(MAIN).signals == (20, "vllm")
    assert vocabulary_hash(checkpoints.load_tokenizer(MAIN)) == vocabulary_hash(tokenizer)


@pytest.mark.parametrize("tuning", [SFT, {"type": "none"}])
def test_a_conversation_that_the_template_refuses_is_named_before_tuning(
    project, tmp_path, make_model, make_tokenizer, tuning
):
    tokenizer = make_tokenizer(chat_template=STRICT)
    checkpoints.save(make_model(tokenizer), tokenizer, tmp_path / "strict", {})
    turns = [Message(role="system", content="Be brief."), Message(role="user", content="Hi")]
    row = Row(id=row_id(tuple(turns)), prompt=tuple(turns), answer=" animal")
    write_rows(LABELLED, [row])
    write_rows(DEV, [row])

    def adapted(**template):
        teacher = Teacher(
            model=str(tmp_path / "strict"), licence="mit", outputs_may_train=True, template=template
        )
        look_at(teacher)
        run("main", teacher, validated(Tuning, tuning, "adapt"), TASK, VerifierAccuracy())
        return checkpoints.load_tokenizer(ADAPT / "main")

    with pytest.raises(UserError, match="the teacher main refuses a system turn") as refused:
        adapted()
    assert row.id in refused.value.where
    assert "teachers.main.template: {system: into_first_user}" in refused.value.fix
    assert not (ADAPT / "main").exists()
    (ids,) = prompt_ids(adapted(system="into_first_user"), [tuple(turns)])
    assert tokenizer.decode(ids) == "<|user|>Be brief.\n\nHi<|end|><|assistant|>"
