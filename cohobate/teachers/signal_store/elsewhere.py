"""A captured teacher whose weights are in Ray actors of their own."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.models import checkpoints
from cohobate.models.lm_head import Head
from cohobate.models.number_formats import NumberFormat
from cohobate.teachers.ray_pool import TeacherPool
from cohobate.teachers.signal_store.teacher_pass import CapturedTeacher
from cohobate.teachers.teacher_workers import TeacherWorkers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ElsewhereTeacher(CapturedTeacher):
    """A teacher in Ray actors, which are started when they are first needed."""

    def __init__(self, folder: Path, number_format: NumberFormat, workers: TeacherWorkers) -> None:
        super().__init__(folder, number_format)
        self.workers = workers

    @functools.cached_property
    def pool(self) -> TeacherPool:
        """The actors."""
        return TeacherPool(self.folder, self.number_format, self.workers)

    @functools.cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":  # type: ignore[override]
        """Its tokenizer."""
        return checkpoints.load_tokenizer(self.folder)

    @functools.cached_property
    def head(self) -> Head:
        """Its head, over the ids of its tokenizer."""
        head: Head = self.pool.result(self.pool.call("head"))
        return head

    def close(self) -> None:
        """Stop the actors, if they were started."""
        if "pool" in self.__dict__:
            self.pool.__exit__()
