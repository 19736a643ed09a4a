"""Fast paths, most of them for a CPU, each beside a plain one that gives the same numbers.

`forward` is the entry point. benchmarks/fast_paths.py measures what each path gains;
`COHOBATE_FAST=off` takes the plain ones.
"""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "ForwardOutputs": "forward_pass",
    "PrefixCache": "prefix_cache",
    "enabled": "switch",
    "forward": "forward_pass",
    "has_row_attention": "forward_pass",
    "load_frozen": "frozen",
    "sparse_gradient": "sparse_embedding_gradient",
}
__all__ = [
    "ForwardOutputs",
    "PrefixCache",
    "enabled",
    "forward",
    "has_row_attention",
    "load_frozen",
    "sparse_gradient",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing the package imports nothing heavy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
