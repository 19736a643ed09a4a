"""Decoding on local models, and the likelihood of given texts."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Answer": "requests",
    "Batching": "requests",
    "Completion": "requests",
    "Decoding": "requests",
    "Likelihood": "likelihood",
    "Request": "requests",
    "decode_batch": "decoding",
    "generate_answers": "decoding",
    "plan_batches": "decoding",
    "stop_ids": "decoding",
}
__all__ = [
    "Answer",
    "Batching",
    "Completion",
    "Decoding",
    "Likelihood",
    "Request",
    "decode_batch",
    "generate_answers",
    "plan_batches",
    "stop_ids",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing the package imports nothing heavy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
