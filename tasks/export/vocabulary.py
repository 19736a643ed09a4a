"""A student whose vocabulary was trimmed gets the whole one back before it leaves.

Who uses it then needs no tokenizer but its teacher's. The tokens that it never learnt are read by
the rows that they have in the teacher, and are never said.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.models import checkpoints, sources
from tasks.progress import say
from tasks.rows.records import ADAPT, EXPORT, MODELS

if TYPE_CHECKING:
    from tasks.shape.students import Student


@contextmanager
def whole(student: Path, shape: "Student") -> Iterator[Path]:
    """Yield a checkpoint of the student with the vocabulary it was cut from; gone afterwards.

    Raises:
        UserError: the model that it was cut from is not here, or is as wide as another.
    """
    from tasks.shape.vocabulary import restore

    lender = _cut_from(shape)
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


def _cut_from(shape: "Student") -> Path:
    """Return the folder of the model whose vocabulary the student's is a part of."""
    if shape.type == "pretrained":
        pin = json.loads(MODELS.read_bytes())["student"]
        return sources.pinned(shape.model, pin)
    folder = ADAPT / shape.teacher
    if not (folder / "config.json").exists():
        raise UserError(
            "the teacher whose vocabulary was trimmed is not here",
            where=str(folder),
            mend=f"cohobate run --stage adapt@{shape.teacher}, or export.vocabulary: used",
        )
    return folder
