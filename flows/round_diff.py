"""Differences between two rounds: params, scores and outputs."""

import json
from collections.abc import Iterator
from typing import Any

from ruamel.yaml import YAML

from flows.round_history import History

Changes = dict[str, tuple[Any, Any]]


def differences(history: History, one: int, other: int) -> dict[str, Changes]:
    """Return, under `params`, `scores` and `stages`, the values that differ between the rounds."""
    sections = {}
    for title, read in {"params": _params, "scores": _scores, "stages": outputs}.items():
        before, after = (read(history, history.record(number).number) for number in (one, other))
        sections[title] = _changes(before, after)
    return sections


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Changes:
    names = dict.fromkeys([*before, *after])
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _params(history: History, number: int) -> dict[str, Any]:
    return dict(_leaves(_yaml(history.file(number, "params.yaml"))))


def _scores(history: History, number: int) -> dict[str, Any]:
    """Return the metrics of the test rows, and the challenge's of the dev rows."""
    test = json.loads(history.file(number, "reports/metrics.json"))
    dev = {"dev": history.record(number).dev}
    return {name: value for name, value in _leaves(test | dev) if isinstance(value, int | float)}


def outputs(history: History, number: int) -> dict[str, str]:
    """Return the hash of each output by stage and path."""
    stages = _yaml(history.file(number, "dvc.lock"))["stages"]
    return {
        f"{name} {out['path']}": out["md5"]
        for name, stage in stages.items()
        for out in stage.get("outs", [])
    }


def _yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
