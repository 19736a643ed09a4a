"""Rows of text: their types and files, their token ids, checks of text and contamination."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Contamination": "contamination",
    "Encoded": "tokenized",
    "Example": "examples",
    "Message": "records",
    "Pair": "records",
    "Response": "records",
    "Row": "records",
    "RowView": "row_files",
    "TrainingRow": "records",
    "encode": "tokenized",
    "encode_all": "tokenized",
    "examples_of": "examples",
    "prompt_ids": "tokenized",
    "read_rows": "records",
    "row_id": "records",
    "write_rows": "records",
}
__all__ = [
    "Contamination",
    "Encoded",
    "Example",
    "Message",
    "Pair",
    "Response",
    "Row",
    "RowView",
    "TrainingRow",
    "encode",
    "encode_all",
    "examples_of",
    "prompt_ids",
    "read_rows",
    "row_id",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing the package imports nothing heavy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
