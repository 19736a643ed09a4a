"""Chains of phases: each goes on from the one before, by params alone."""

import pytest

from cohobate import sealed_folder
from cohobate.data.messages import Message
from cohobate.data.records import INIT_STUDENT, LABELLED, TRAIN, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.params import ParamsError, validated
from tasks.train.stage import run
from tests.cohobate.methods.test_dpo import DPO, PAIRS, pairs
from tests.cohobate.methods.test_on_policy import ON_POLICY
from tests.tasks.train.test_train import KD, SFT, phase, round_so_far

__all__ = ["round_so_far"]


def depth(name: str) -> int:
    model, _ = checkpoints.load(TRAIN / name / "seed-1")
    return int(model.config.num_hidden_layers)


def chain(**phases: dict) -> None:
    """Run phases in their order."""
    for name, fields in phases.items():
        run(name, phase(**fields), seeds=[1])
        sealed_folder.verify(TRAIN / name / "seed-1")


def test_fine_tuning_then_distillation_then_preferences(round_so_far) -> None:
    write_rows(PAIRS, pairs())
    chain(sft=SFT, kd=KD | {"from": "train/sft"}, dpo=DPO | {"from": "train/kd"})


def test_the_last_turn_alone_is_learnt_of_rows_that_teach_all(round_so_far) -> None:
    roles = (("user", "a bird"), ("assistant", "animal"), ("user", "a tree"))
    prompt = tuple(Message(role=role, content=text) for role, text in roles)  # type: ignore[arg-type]
    row = Row(id=row_id(prompt), prompt=prompt, answer="plant", learn="all")
    write_rows(LABELLED, [row])
    chain(all=SFT, last=SFT | {"turns": "last"})
    write_rows(LABELLED, [row.model_copy(update={"learn": None})])
    chain(plain=SFT)
    every, last, plain = (
        (TRAIN / name / "seed-1/model.safetensors").read_bytes()
        for name in ("all", "last", "plain")
    )
    assert last == plain != every


def test_layers_are_dropped_from_phase_to_phase(round_so_far) -> None:
    chain(
        three=KD | {"from": "adapt/main", "keep_layers": [0, 1, 3]},
        two=KD | {"from": "train/three", "keep_layers": {"uniform": 2}},
    )
    assert (depth("three"), depth("two")) == (3, 2)


def test_an_assistant_stands_between_teacher_and_student(round_so_far) -> None:
    off_policy = {"student_text": {"type": "constant", "share": 0}}
    chain(
        assistant=KD | {"from": "adapt/main", "keep_layers": [0, 2, 3]},
        student=ON_POLICY | off_policy | {"targets": "models/train/assistant"},
    )
    assert (depth("assistant"), depth("student")) == (3, 2)


def test_a_student_is_born_again_of_an_earlier_phase(round_so_far) -> None:
    off_policy = {"student_text": {"type": "constant", "share": 0}}
    chain(first=KD, second=ON_POLICY | off_policy | {"targets": "models/train/first"})
    assert checkpoints.fingerprint(TRAIN / "first/seed-1") != checkpoints.fingerprint(
        TRAIN / "second/seed-1"
    )


def test_a_control_starts_from_random_weights_of_the_same_sizes(round_so_far) -> None:
    control = SFT | {
        "random_start": True,
        "freeze": {"embeddings": False},
        "learning_rate": 1e-9,
        "updates": 1,
    }
    run("control", phase(**control), seeds=[1, 2])
    one, other = (checkpoints.load(TRAIN / f"control/seed-{n}")[0] for n in (1, 2))
    start, _ = checkpoints.load(INIT_STUDENT)
    weights = [model.model.layers[1].mlp.up_proj.weight for model in (one, other, start)]
    assert weights[0].shape == weights[2].shape and len({w.sum().item() for w in weights}) == 3
    assert abs(weights[0].std() - start.config.initializer_range) < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, "stay as they are"),
        ({"freeze": {"embeddings": False}, "adapter": {"type": "lora"}}, "no random_start"),
        ({"freeze": {"embeddings": False}, "method": "classify"}, "models that generate"),
    ],
)
def test_what_a_random_start_does_not_go_with_is_refused(change, message) -> None:
    with pytest.raises(ParamsError, match=message):
        validated(Method, SFT | {"random_start": True} | change, "train.here")


def test_layers_that_are_not_there_are_refused(round_so_far) -> None:
    with pytest.raises(UserError, match=r"has 4 layers .*cannot take \[4\]"):
        run("here", phase(**KD | {"from": "adapt/main", "keep_layers": [0, 4]}), seeds=[1])
