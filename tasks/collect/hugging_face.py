"""Hugging Face data sets: a folder saved by `datasets`, or a name on the hub."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cohobate.errors import UserError
from tasks.collect.arrow_records import batch_records
from tasks.collect.data_folders import PARTS
from tasks.collect.files import ColumnSource, inside_project
from tasks.collect.source_records import QuarantinedRecord, SourceRecord

_BATCH = 1024
Part = Literal["train", "dev", "test", "ood"]


class SavedDataset(ColumnSource):
    """A folder that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote.

    The splits of a `DatasetDict` are kept. Names other than train, dev, validation, test and ood
    count as train where `part` does not say what they are.
    """

    type: Literal["datasets"]
    path: str
    """The folder, below the project."""
    part: dict[str, Part] = Field(default_factory=dict)
    """The part that a split is, such as `{test_sft: test}`."""

    @property
    def file(self) -> str:
        """Name of the file whose rows are counted."""
        return self.path

    def release(self) -> str:
        """Return the name of the data for the summary."""
        return Path(self.path).name

    def source_records(self, inside: bool = True) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the rows of each split; the files are memory-mapped.

        Args:
            inside: whether a folder outside the project is refused.

        Raises:
            UserError: the folder cannot be read.
        """
        folder = inside_project(self.path) if inside else Path(self.path)
        number, parts = 0, PARTS | self.part
        for name, split in _loaded(folder).items():
            for table in split.with_format("arrow").iter(batch_size=_BATCH):
                for record in batch_records(table):
                    number += 1
                    yield self.source_record(number, record, parts.get(name, ""))


class HubDataset(ColumnSource):
    """A data set on the hub, streamed at a pinned commit."""

    type: Literal["hub"]
    path: Literal["tasks/collect/hugging_face.py"] = "tasks/collect/hugging_face.py"
    """What DVC watches in place of a file: the revision says which data it is."""
    name: str
    """Such as `openai/gsm8k`."""
    revision: str = Field(pattern="^[0-9a-f]{40}$")
    """The commit: a branch can change."""
    config: str | tuple[str, ...] | None = None
    """Name of the configuration, where there are several; or a list of them, which records name in
    a column `config`."""
    part: str | dict[str, Part] = "train"
    """Name of the split on the hub; or the part that each of several is, such as
    `{train_sft: train, test_sft: test}`."""

    @property
    def file(self) -> str:
        """Name of the file whose rows are counted."""
        return self.name

    def release(self) -> str:
        """Return the name of the data for the summary."""
        return f"{self.name}@{self.revision[:12]}"

    def source_records(self) -> Iterator[SourceRecord | QuarantinedRecord]:
        """Yield the rows of the splits, one after the other.

        Raises:
            UserError: the data set does not exist, or the hub cannot be reached.
        """
        several = isinstance(self.config, tuple)
        configs = self.config if isinstance(self.config, tuple) else (self.config,)
        splits = self.part if isinstance(self.part, dict) else {self.part: ""}
        for config, (split, part) in product(configs, splits.items()):
            names = [self.name, *([str(config)] if several else [])]
            file = ", ".join([*names, *([split] if isinstance(self.part, dict) else [])])
            for number, record in enumerate(self._rows(config, split), start=1):
                columns = {"config": config, **record} if several else record
                yield self.source_record(number, columns, part, file)

    def _rows(self, config: str | None, split: str) -> Iterator[dict[str, Any]]:
        from datasets import load_dataset

        options = {"split": split, "revision": self.revision, "streaming": True}
        try:
            # pictures as they came: decoded ones would have to be encoded again
            rows = load_dataset(self.name, config, **options).decode(False)
            for row in rows:
                yield {name: _with_bytes(value) for name, value in row.items()}
        except Exception as error:  # offline, unreachable, unknown and gated are a class each
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"cannot read the data set {self.name}: {reason[0]}",
                where=f"revision {self.revision}, split {split}",
                fix="check the name and the connection; or save it with `save_to_disk` where there "
                "is access, and set collect.source: {type: datasets, path: ...}",
            ) from error


def _with_bytes(value: Any) -> Any:
    """Return a column's value; where it names a file, such as a picture, with its content."""
    from datasets.utils.file_utils import xopen

    if isinstance(value, list):
        return [_with_bytes(one) for one in value]
    if not (isinstance(value, dict) and value.keys() == {"bytes", "path"}):
        return value
    if value["bytes"] is None and value["path"]:
        with xopen(value["path"], "rb") as file:
            return value | {"bytes": file.read()}
    return value


def _loaded(folder: Path) -> dict[str, Any]:
    from datasets import Dataset, load_from_disk

    try:
        loaded = load_from_disk(str(folder))
    except Exception as error:  # pyarrow's, datasets' own and OSError
        raise UserError(
            f"cannot read the data set: {error}",
            where=str(folder),
            fix="name a folder that `datasets` wrote with save_to_disk",
        ) from error
    return {"": loaded} if isinstance(loaded, Dataset) else dict(loaded)
