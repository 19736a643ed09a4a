"""Restores the full vocabulary of a student whose vocabulary was trimmed.

Users then need only the teacher's tokenizer. Tokens that the student was not trained on take their
embedding rows from the teacher, and are never generated.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.data.records import ADAPT, EXPORT, MODELS
from cohobate.errors import UserError
from cohobate.models import checkpoints, hub
from cohobate.progress import say

if TYPE_CHECKING:
    from cohobate.students.initialization import StudentInit


@contextmanager
def whole(student: Path, student_params: "StudentInit") -> Iterator[Path]:
    """Yield a checkpoint of the student with the vocabulary it was cut from; gone afterwards.

    Raises:
        UserError: the model that it was cut from is not here, or is as wide as another.
    """
    from cohobate.students.vocabulary_trimming import restore

    lender = _cut_from(student_params)
    model, tokenizer = checkpoints.load(student)
    known = len(tokenizer)
    full = restore(model, tokenizer, lender)
    EXPORT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=EXPORT.parent, prefix=".whole-") as scratch:
        provenance = checkpoints.provenance(student)
        stored = json.loads((student / "config.json").read_bytes())["dtype"]
        checkpoints.save(model, full, Path(scratch) / "model", provenance, precision=stored)
        say(f"vocabulary: {known} tokens were learnt, all {len(full)} are given back")
        yield Path(scratch) / "model"


def _cut_from(student_params: "StudentInit") -> Path:
    """Return the folder of the model whose vocabulary the student's is a part of."""
    if student_params.type == "pretrained":
        pin = json.loads(MODELS.read_bytes())["student"]
        return hub.resolve_pinned(student_params.model, pin)
    folder = ADAPT / student_params.teacher
    if not (folder / "config.json").exists():
        raise UserError(
            "the teacher whose vocabulary was trimmed is not here",
            where=str(folder),
            fix=f"cohobate run --stage adapt@{student_params.teacher}, or export.vocabulary: used",
        )
    return folder
