"""Data sets of Hugging Face: a folder that `datasets` saved, or a name on the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cohobate.errors import UserError
from tasks.collect.arrow_records import batch_records
from tasks.collect.examples import Example, SetAside
from tasks.collect.files import PARTS, Records, inside_project

_BATCH = 1024


class Saved(Records):
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    The splits of the latter stay what they are; other names than train, dev, validation, test and
    ood belong to train.
    """

    type: Literal["datasets"]
    path: str
    """The folder, below the project."""

    @property
    def file(self) -> str:
        """Name of the file whose rows are counted."""
        return self.path

    def release(self) -> str:
        """Return what the summary says of the source."""
        return Path(self.path).name

    def examples(self) -> Iterator[Example | SetAside]:
        """Yield the rows of each split; the files are memory-mapped.

        Raises:
            UserError: the folder cannot be read.
        """
        number = 0
        for name, split in _loaded(inside_project(self.path)).items():
            for table in split.with_format("arrow").iter(batch_size=_BATCH):
                for record in batch_records(table):
                    number += 1
                    yield self.example(number, record, PARTS.get(name, ""))


class Hub(Records):
    """A data set on the hub, streamed at a pinned commit."""

    type: Literal["hub"]
    path: Literal["tasks/collect/hugging_face.py"] = "tasks/collect/hugging_face.py"
    """What DVC watches in place of a file: the revision says which data it is."""
    name: str
    """Such as `openai/gsm8k`."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """The commit: a branch would be other data tomorrow."""
    config: str | None = None
    """Name of the configuration, where there are several."""
    part: str = "train"
    """Name of the split on the hub."""

    @property
    def file(self) -> str:
        """Name of the file whose rows are counted."""
        return self.name

    def release(self) -> str:
        """Return what the summary says of the source."""
        return f"{self.name}@{self.revision[:12]}"

    def examples(self) -> Iterator[Example | SetAside]:
        """Yield the rows of the split.

        Raises:
            UserError: there is no such data set, or no way to the hub.
        """
        from datasets import load_dataset

        options = {"split": self.part, "revision": self.revision, "streaming": True}
        try:
            for number, record in enumerate(load_dataset(self.name, self.config, **options), 1):
                yield self.example(number, record)
        except Exception as error:  # offline, unreachable, unknown and gated are a class each
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot read the data set {self.name}: {reason[0]}",
                where=f"revision {self.revision}, split {self.part}",
                fix="check name and connection, or save it with `save_to_disk` where there is a "
                "hub and give collect.source {type: datasets, path: ...}",
            ) from error


def _loaded(folder: Path) -> dict[str, Any]:
    from datasets import Dataset, load_from_disk

    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # pyarrow's, datasets' own and OSError
        raise UserError(
            f"cannot read the data set: {error}",
            where=str(folder),
            fix="name a folder that `datasets` wrote with save_to_disk",
        ) from error
    return {"": found} if isinstance(found, Dataset) else dict(found)
