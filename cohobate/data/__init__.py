"""Rows of text: their types and files, their token ids, checks of text and contamination."""

from cohobate.lazy_names import attach

_NAMES = {
    "contamination": ["Contamination"],
    "examples": ["Example", "examples_of"],
    "messages": ["Message", "Prompt", "ToolCall"],
    "records": [
        "Pair",
        "Response",
        "Row",
        "TrainingRow",
        "read_rows",
        "row_id",
        "write_rows",
    ],
    "row_files": ["RowView"],
    "tokenized": ["Encoded", "encode", "encode_all", "prompt_ids"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
