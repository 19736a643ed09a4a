"""The label store: a teacher's distribution over the task's labels for each prompt, on disk.

    index.npy      a record a prompt, sorted by `key`: hash of the row's id, and of the prompt that
                   the teacher read in place of the row's (0: it read the row's)
    logp.npy       log-probabilities of the labels in the order of the index, (R, C), float16
    signals.json   what it was captured with (`LabelOrigin`): labels, texts, teacher
    manifest.json  size and sha256 of each file

A row of 25 labels takes 66 bytes. A student whose labels are others is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from cohobate import params
from cohobate.data.examples import teacher_prompt_hash
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models.number_formats import NumberFormat
from cohobate.scoring.labels import LabelSet, LabelTexts
from cohobate.scoring.verifiers import Verifier
from cohobate.sealed_folder import verify
from cohobate.teachers.signal_store.label_form import StoredLabels
from cohobate.teachers.signal_store.store import ABOUT, INDEX, row_hash

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
LOGP = "logp.npy"
ROW = np.dtype([("key", "<u8"), ("teacher_prompt", "<u8")])
"""A record of the index. These names are on disk, in the header of index.npy."""
SMALLEST = -6e4
"""Log-probability of a label without any vote: finite, and 0 at every temperature in use."""


class LabelOrigin(BaseModel):
    """What a label store was captured with: the content of signals.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    form: StoredLabels
    teacher: str
    """Fingerprint of the teacher's checkpoint, or of its address."""
    labels: tuple[str, ...]
    """In the order of the columns."""
    texts: tuple[str, ...]
    """The answers whose likelihoods were measured."""
    verifier: dict[str, Any]
    """By which answers are compared with the labels."""
    number_format: NumberFormat | Literal["votes", "served"]
    """In which the teacher ran; `votes`: none, `served`: a service's, which it does not say."""
    rows: int = 0

    @classmethod
    def of(
        cls,
        form: StoredLabels,
        teacher: str,
        labels: LabelTexts,
        number_format: NumberFormat | Literal["votes", "served"],
    ) -> "LabelOrigin":
        """Return the origin of distributions over some labels."""
        return cls(
            form=form,
            teacher=teacher,
            labels=labels.labels.names,
            texts=labels.texts,
            verifier=labels.labels.verifier.model_dump(mode="json"),
            number_format=number_format,
        )

    @property
    def label_set(self) -> LabelSet:
        """The labels, with their verifier."""
        return LabelSet(self.labels, params.validated(Verifier, self.verifier, ABOUT))


def index_of(rows: Sequence[Row]) -> "np.ndarray[Any, Any]":
    """Return the records of rows in an index."""
    pairs = [(row_hash(row.id), teacher_prompt_hash(row)) for row in rows]
    return np.array(pairs, dtype=ROW)


def is_label_store(folder: Path) -> bool:
    """Say whether a folder holds distributions over labels."""
    path = folder / ABOUT
    about = json.loads(path.read_bytes()) if path.is_file() else {}
    return bool(about.get("form", {}).get("type") == "labels")


class LabelStore:
    """A label store, opened for reading; the distributions stay on disk until `logprobs`.

    Example:
        store = LabelStore(Path("data/capture/main"))
        places = store.find(rows)
        logp_RC = store.logprobs(places)

    Args:
        folder: such as data/capture/main.

    Raises:
        UserError: there is no label store, a file is damaged, or its format is another one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not is_label_store(folder):
            raise UserError(
                "there are no distributions over labels",
                where=str(folder),
                fix="cohobate run --set 'capture.signals={type: labels}'",
            )
        verify(folder)
        about = json.loads((folder / ABOUT).read_bytes())
        if about["format"] != FORMAT:
            message = f"the store has format {about['format']}, format {FORMAT} is needed"
            raise UserError(message, where=str(folder), fix="dvc repro capture")
        self.origin = LabelOrigin.model_validate(about)
        self._index = np.load(folder / INDEX, mmap_mode="r")
        self._logp_RC = np.load(folder / LOGP, mmap_mode="r")

    def check_labels(self, labels: LabelSet) -> None:
        """Refuse a student of other labels, or one that compares answers in another way.

        Raises:
            UserError: naming a label that only one of the two has.
        """
        own, other = set(self.origin.labels), set(labels.names)
        fix = "dvc repro capture init_student; both read the labels of the labelled rows"
        if own != other:
            name = min(own ^ other)
            owner = "signals" if name in own else "student"
            raise UserError(
                f"the signals are over {len(own)} labels, the student has {len(other)}: "
                f"{name!r} is a label of the {owner} alone",
                where=str(self.folder),
                fix=fix,
            )
        if labels.verifier.model_dump(mode="json") != self.origin.verifier:
            raise UserError(
                "the signals and the student compare answers by different verifiers",
                where=f"{self.folder}, and task.verifier",
                fix=fix,
            )

    def find(self, rows: Sequence[Row]) -> "np.ndarray[Any, Any]":
        """Return the place of each row's prompt in the store; −1 where there is none."""
        if not rows or not len(self._index):
            return np.full(len(rows), -1)
        wanted = index_of(rows)
        keys = np.ascontiguousarray(self._index["key"])
        at = np.searchsorted(keys, wanted["key"]).clip(0, len(keys) - 1)
        return np.where(self._index[at] == wanted, at, -1)

    def places(self, rows: Sequence[Row]) -> "np.ndarray[Any, Any]":
        """Return the place of each row's prompt in the store; −1 for one known to be missing.

        Raises:
            UserError: a prompt was not captured, or was captured as another one.
        """
        from cohobate.teachers.signal_store.missing import missing_keys

        at, missing = self.find(rows), missing_keys(self.folder)
        absent = [row.id for row, n in zip(rows, at, strict=True) if n < 0 if row.id not in missing]
        if absent:
            raise UserError(
                f"no signals of {len(absent)} of {len(rows)} rows: {', '.join(absent[:3])}",
                where=str(self.folder),
                fix="rows: data/curriculum/train.jsonl, whose prompts are captured; or capture "
                "them again: dvc repro capture",
            )
        return at

    def logprobs(self, places: Sequence[int], labels: LabelSet | None = None) -> "Tensor":
        """Return log-probabilities at some places, (R, C); columns in the order of `labels`."""
        import torch

        logp_RC = self._logp_RC[list(places)].astype(np.float32)
        if labels is not None:
            logp_RC = logp_RC[:, [self.origin.labels.index(name) for name in labels.names]]
        return torch.from_numpy(logp_RC)
