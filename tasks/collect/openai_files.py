"""Lines of OpenAI's batch files, and of logs that hold a request and its completion."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

from tasks.collect.source_records import (
    BrokenRecord,
    QuarantinedRecord,
    UnusableRecordError,
    excerpt,
)

Columns = Mapping[str, Any]
_ENDED = ("stop", "tool_calls", "function_call", None)


class BatchReplies:
    """The lines of a batch's output by `custom_id`, in a temporary SQLite database on disk."""

    def __init__(self) -> None:
        self._replies = sqlite3.connect("")
        self._replies.execute(
            "CREATE TABLE replies"
            " (id TEXT PRIMARY KEY, file TEXT, line INT, reply TEXT, joined INT)"
        )
        self._any = False

    def add(self, file: str, line: int, record: Columns | BrokenRecord) -> BrokenRecord | None:
        """Add a line of the output; return it with the reason where it cannot be one."""
        if isinstance(record, BrokenRecord):
            return record
        if not isinstance(custom_id := record.get("custom_id"), str):
            reason = "a line of a batch's output without 'custom_id'"
            return BrokenRecord(reason, excerpt(dict(record)))
        reply = {"response": record.get("response"), "error": record.get("error")}
        values = (custom_id, file, line, json.dumps(reply))
        query = "INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, 0)"
        if not self._replies.execute(query, values).rowcount:
            reason = "a second reply of a batch with one custom_id"
            return BrokenRecord(reason, excerpt(dict(record)))
        self._any = True
        return None

    def join(self, record: Columns | BrokenRecord) -> Columns | BrokenRecord:
        """Return a request with its reply, if it has one."""
        if not self._any or isinstance(record, BrokenRecord):
            return record
        if not isinstance(custom_id := record.get("custom_id"), str):
            return record
        query = "UPDATE replies SET joined = 1 WHERE id = ? RETURNING reply"
        rows = self._replies.execute(query, (custom_id,)).fetchall()
        return {**record, **json.loads(rows[0][0])} if rows else record

    def without_request(self) -> Iterator[QuarantinedRecord]:
        """Yield the replies that were not joined to a request."""
        query = "SELECT id, file, line FROM replies WHERE NOT joined ORDER BY file, line"
        for custom_id, file, line in self._replies.execute(query):
            reason = "a reply of a batch without its request: no other file has the custom_id"
            yield QuarantinedRecord(file=file, line=line, reason=reason, text=excerpt(custom_id))


def is_batch(columns: Columns) -> bool:
    """Return whether a record is a line of a batch's input or output file."""
    return isinstance(columns.get("body"), dict) or (
        "custom_id" in columns and ("response" in columns or "error" in columns)
    )


def exchange(columns: Columns) -> tuple[Columns, list[Any]]:
    """Return the request of a line of a batch, and its turns with the reply if there is one.

    Raises:
        UnusableRecordError: the line has no request, or the request failed.
    """
    body = columns.get("body")
    if not isinstance(body, dict):
        raise UnusableRecordError(
            "a batch's output has no prompts: put it into one folder with the batch's input, and "
            "set collect.source.replies to its name"
        )
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise UnusableRecordError("column 'body.messages' is not a list of turns")
    return body, [*messages, *reply(columns)]


def reply(columns: Columns) -> list[Any]:
    """Return the turn with which a service replied; none where the record holds no reply.

    Raises:
        UnusableRecordError: the request failed, or its completion is cut or not the only one.
    """
    response = columns.get("response")
    if columns.get("error") and (isinstance(response, dict) or "custom_id" in columns):
        raise UnusableRecordError(f"the request failed: {_code(columns['error'])}")
    completion = response if isinstance(response, dict) else columns
    if isinstance(completion.get("body"), dict) and completion is response:
        if completion.get("status_code", 200) != 200:
            raise UnusableRecordError(f"the request failed: status {completion['status_code']}")
        completion = completion["body"]
    choices = completion.get("choices")
    if not isinstance(choices, list) or not all(map(_is_choice, choices)):
        return []  # a column of that name can hold something else
    if not choices and completion is columns:
        return []
    if len(choices) != 1:
        raise UnusableRecordError(f"the completion has {len(choices)} choices, not one")
    if (finish := choices[0].get("finish_reason")) not in _ENDED:
        raise UnusableRecordError(f"the completion is cut: finish_reason {finish!r}")
    return [choices[0]["message"]]


def _is_choice(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("message"), dict)


def _code(error: Any) -> str:
    code = error.get("code") or error.get("message") if isinstance(error, dict) else error
    return excerpt(str(code))
