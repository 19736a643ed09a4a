"""init_student: the student starts as said, the same bytes every time."""

import json
import shutil
from typing import Any

import pytest
import torch

from cohobate.data.records import ADAPT, INIT_STUDENT, LABELLED, MODELS, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.layer_choice import Uniform
from cohobate.params import ParamsError, validated
from cohobate.scoring.verifiers import Label, Task
from cohobate.students.initialization import StudentInit
from cohobate.students.layer_cutting import keep_layers, layer_stack
from cohobate.teachers.teacher import Teacher
from tasks.init_student.stage import run
from tests.tasks.preflight.test_preflight import run_stage as preflight

TASK = Task(verifier=Label(type="label"))


@pytest.fixture
def build(project, checkpoint, make_model, tokenizer):
    """Run preflight and shape; the adapted teacher has other weights than the base."""
    checkpoints.save(make_model(tokenizer, seed=1), tokenizer, ADAPT / "main", {})
    teachers = {
        "main": Teacher(model=str(checkpoint), licence="Apache-2.0", outputs_may_train=True)
    }

    def built(**shape: Any):
        student = validated(StudentInit, shape, "init_student")
        preflight(teachers, student)
        run(student, teachers, TASK)
        return checkpoints.load(INIT_STUDENT)

    return built


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("of", ["models/adapt/main", "data/preflight"])
def test_layers_are_the_teachers(build, make_model, tokenizer, of):
    student, its_tokenizer = build(type="teacher_layers", layers=[2, 0, 3], of=of)
    teacher = make_model(tokenizer, seed=1 if of == "models/adapt/main" else 0)
    assert student.config.num_hidden_layers == 3
    for block, position in zip(student.model.layers, (2, 0, 3), strict=True):
        assert same(block, teacher.model.layers[position])
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    summary = json.loads((INIT_STUDENT / "summary.json").read_text())
    assert summary["parameters"] == student.num_parameters()
    pinned = json.loads(MODELS.read_text())["student"]
    assert {k: pinned[k] for k in summary} == summary  # preflight foresaw it to the last weight


def test_all_layers_are_the_teacher_itself(model, tokenizer):
    ids_BS = torch.randint(0, 290, (2, 9))
    expected = model(ids_BS).logits
    keep_layers(model, [0, 1, 2, 3])
    assert torch.equal(model(ids_BS).logits, expected)


def test_fewer_layers_still_generate_with_a_cache(model):
    keep_layers(model, [1, 3])
    ids = torch.tensor([[5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


def test_a_configuration_with_an_entry_a_layer_is_cut_too():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    kinds = ["full_attention", "sliding_attention"] * 2
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    config = Qwen3Config(
        num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, layer_types=kinds,
        sliding_window=4, use_sliding_window=True, **sizes,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    keep_layers(model, [1, 2])
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert len(layer_stack(model)) == 2
    model(torch.tensor([[1, 2, 3]]))


def test_uniform_takes_the_first_and_the_last():
    assert Uniform(uniform=4).of(30) == [0, 10, 19, 29]
    assert Uniform(uniform=2).of(4) == [0, 3]
    assert Uniform(uniform=1).of(4) == [3]
    assert Uniform(uniform=4).of(4) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "teacher_layers", "layers": [0, 3]},
        {"type": "random", "layers": 2, "overrides": {"hidden_size": 16}, "seed": 4},
    ],
)
def test_the_same_params_are_the_same_bytes(build, shape):
    torch.manual_seed(1)
    build(**shape)
    first = checkpoints.fingerprint(INIT_STUDENT)
    shutil.rmtree(INIT_STUDENT)
    torch.manual_seed(2)
    build(**shape)
    assert checkpoints.fingerprint(INIT_STUDENT) == first


def test_another_seed_is_another_random_student(build):
    one, _ = build(type="random", layers=2)
    other, _ = build(type="random", layers=2, seed=1)
    assert not same(one, other)


def test_a_pretrained_student_can_take_the_teachers_manners(
    build, make_model, make_tokenizer, tokenizer, tmp_path
):
    base = make_tokenizer(eos_token="<|pad|>", chat_template=None)
    model = make_model(base, seed=7, layers=2)
    checkpoints.save(model, base, tmp_path / "base", {})
    student, its = build(type="pretrained", model=str(tmp_path / "base"), tokenizer="teacher")
    assert same(student, model)
    assert (its.eos_token, its.chat_template) == ("<|end|>", tokenizer.chat_template)
    assert student.generation_config.eos_token_id == tokenizer.eos_token_id
    assert student.config.eos_token_id == tokenizer.eos_token_id


def test_a_model_that_changed_since_preflight_is_refused(build, checkpoint, make_model, tokenizer):
    build(type="teacher_layers", layers=[0])
    checkpoints.save(make_model(tokenizer, seed=9), tokenizer, checkpoint, {})
    teachers = {"main": Teacher(model=str(checkpoint))}
    shape = validated(StudentInit, {"type": "teacher_layers", "layers": [0]}, "init_student")
    with pytest.raises(UserError, match="another one than preflight saw"):
        run(shape, teachers, TASK)


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": {"important": 2}},
        {"layers": [0, 2], "width": {"groups": 1, "neurons": 40}},
        {"layers": {"important": 3}, "width": {"groups": 1, "neurons": 8}, "vocabulary": "used"},
    ],
    ids=["important", "narrow", "all"],
)
def test_a_student_cut_by_rows_is_what_preflight_foresaw(build, project, shape):
    prompts = ["a small plant", " animal person"]
    write_rows(LABELLED, [Row(id=row_id(p), prompt=p, answer=" animal") for p in prompts])
    records = []
    for _ in range(2):
        build(type="teacher_layers", rows="data/collect/labelled.jsonl", **shape)
        records.append(checkpoints.fingerprint(INIT_STUDENT))
    assert records[0] == records[1]
    summary, pinned = (json.loads(p.read_text()) for p in (INIT_STUDENT / "summary.json", MODELS))
    foreseen = pinned["student"]["parameters"]
    if "vocabulary" in shape:  # which tokens occur is not known before
        assert summary["parameters"] < foreseen and summary["vocabulary"] < 300
    else:
        assert summary["parameters"] == foreseen
    assert summary["layers"] == pinned["student"]["layers"]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": {"important": 2}}, "needs rows"),
        ({"layers": [0], "vocabulary": "used"}, "needs rows"),
        ({"layers": [0], "width": {"groups": 1, "neurons": 8}}, "needs rows"),
        ({"layers": [0], "rows": "../kept.jsonl"}, "pattern"),
    ],
)
def test_a_student_cut_by_rows_needs_them(shape, message):
    with pytest.raises(ParamsError, match=message):
        validated(StudentInit, {"type": "teacher_layers", **shape}, "init_student")


def test_rows_that_are_not_there_are_named(build):
    with pytest.raises(UserError, match="file not found"):
        build(type="teacher_layers", layers=[0], vocabulary="used", rows="data/filter/kept.jsonl")


def test_more_than_the_teacher_has_is_refused(build):
    rows = "data/collect/labelled.jsonl"
    for change, message in (
        ({"layers": {"important": 5}}, "has 4 layers"),
        ({"layers": [0], "width": {"groups": 3, "neurons": 8}}, "the teacher has 2 and"),
    ):
        with pytest.raises(UserError, match=message):
            build(type="teacher_layers", rows=rows, **change)
