"""Records of Parquet and Arrow files, read a thousand rows at a time."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any

from tasks.collect.source_records import BrokenCell, NumberedRecord, UnreadableError

_ROWS = 1024
# not UTF-8, a date outside the calendar, an unknown time zone
_UNREADABLE = (ValueError, OverflowError, LookupError)


def parquet_records(file: IO[bytes], encoding: str | None = None) -> Iterator[NumberedRecord]:
    """Yield the rows of a Parquet file.

    Raises:
        UnreadableError: two columns have one name.
    """
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    yield from _numbered(table.schema_arrow, table.iter_batches(batch_size=_ROWS))


def arrow_records(file: IO[bytes], encoding: str | None = None) -> Iterator[NumberedRecord]:
    """Yield the rows of an Arrow IPC file or stream: Feather, or what `datasets` caches.

    Raises:
        UnreadableError: two columns have one name.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(file)
        batches = (table.get_batch(number) for number in range(table.num_record_batches))
    except pa.ArrowInvalid:
        file.seek(0)
        table = batches = pa.ipc.open_stream(file)
    parts = (
        batch.slice(start, _ROWS) for batch in batches for start in range(0, batch.num_rows, _ROWS)
    )
    yield from _numbered(table.schema, parts)


def batch_records(batch: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of an Arrow table; a value that cannot be read is a BrokenCell."""
    nested = [field.name for field in batch.schema if _holds_structs(field.type)]
    for record in _records(batch):
        # a struct has the keys of all rows: those that a row does not have are null
        record.update((name, _without_nulls(record[name])) for name in nested)
        yield record


def _records(batch: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except _UNREADABLE:
        for row in range(batch.num_rows):
            columns = zip(batch.schema.names, batch.slice(row, 1).columns, strict=True)
            yield {name: _cell(column) for name, column in columns}


def _holds_structs(kind: Any) -> bool:
    return "struct<" in str(kind)


def _without_nulls(value: Any) -> Any:
    """Return a value without the keys of structs that are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _cell(column: Any) -> Any:
    try:
        return column.to_pylist()[0]
    except _UNREADABLE as error:
        return BrokenCell(type(error).__name__)


def _numbered(schema: Any, batches: Any) -> Iterator[NumberedRecord]:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise UnreadableError(
            f"several columns have one name: {', '.join(twice)}",
            "rename or remove one of the columns",
        )
    number = 0
    for batch in batches:
        for record in batch_records(batch):
            number += 1
            yield number, record
