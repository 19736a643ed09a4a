"""Sizes of the parts that `collect` draws, by params.yaml."""

from collections.abc import Mapping
from typing import Any


def split_sizes(collect: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes in the section `collect`; with several sources the sums over them."""
    split: dict[str, int] = collect.get("split") or {}
    sources = [split | (one.get("split") or {}) for one in (collect.get("sources") or {}).values()]
    parts = ("labelled", "unlabelled", "dev", "test") if sources else ()
    return {part: sum(one.get(part) or 0 for one in sources) for part in parts} or split
