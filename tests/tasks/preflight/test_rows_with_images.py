"""What does not fit rows with pictures is refused before any work."""

from copy import deepcopy
from typing import Any

import pytest

from cohobate import params
from cohobate.errors import UserError
from cohobate.methods.train import Method
from cohobate.students.initialization import StudentInit
from tasks.preflight.seeing import check_seeing

ROWS = "data/collect/labelled.jsonl"
SEEING = {"type": "seeing", "layers": {"uniform": 2}}
DOCUMENT = {"collect": {"images": "image"}, "evaluate": {"teacher_reads": "teacher_prompt"}}


def check(init: Any, document: Any, **phase: Any) -> None:
    fields = {"method": "sft", "from": "init_student", "rows": ROWS, "targets": ROWS, "updates": 1}
    phases = {"train.one": params.validated(Method, fields | phase, "train.one")}
    check_seeing(params.validated(StudentInit, init, "init_student"), phases, document)


def test_a_round_with_pictures_and_one_without_are_let_through() -> None:
    check(SEEING, DOCUMENT)
    check({"type": "random", "layers": 1}, {"collect": {}})


@pytest.mark.parametrize(
    ("init", "collect", "says"),
    [
        ({"type": "random", "layers": 1}, {"images": "image"}, "does not see"),
        (SEEING, {}, "no row has pictures"),
        (SEEING, {"images": "image", "source": {"type": "emoji"}}, "no caption"),
    ],
)
def test_pictures_go_with_a_student_that_sees(init: Any, collect: Any, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        check(init, DOCUMENT | {"collect": collect})
    assert raised.value.fix


@pytest.mark.parametrize(
    ("section", "value", "says"),
    [
        ("evaluate", {}, "evaluated on their captions"),
        ("generate", {"template": "rationale"}, "prompts of its own"),
        ("export", {"forms": [{"type": "gguf"}]}, "cannot be exported as gguf"),
        ("preferences", {"type": "best_vs_worst"}, "preferences"),
        ("filter", {"filters": [{"type": "judge"}]}, "the filter judge"),
        ("curriculum", {"difficulty": {"type": "ifd"}}, "difficulty ifd"),
        ("curriculum", {"scorer": "models/init_student"}, "a scorer reads text"),
    ],
)
def test_a_stage_that_would_read_the_text_alone_is_refused(
    section: str, value: Any, says: str
) -> None:
    document = deepcopy(DOCUMENT) | {section: value}
    with pytest.raises(UserError, match=says) as raised:
        check(SEEING, document)
    assert raised.value.fix and section in raised.value.where


@pytest.mark.parametrize(
    ("phase", "says"),
    [
        ({"workers": 2, "batch_size": 4}, "workers"),
        ({"adapter": {"type": "lora"}}, "adapter"),
        ({"from": "adapt/main"}, "a model of text"),
        (
            {
                "method": "dpo",
                "rows": "data/preferences/pairs.jsonl",
                "targets": "models/init_student",
            },
            "dpo",
        ),
    ],
)
def test_a_phase_that_cannot_train_it_is_refused(phase: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(SEEING, DOCUMENT, **phase)
