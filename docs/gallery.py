"""Write docs/gallery.md: what each recipe showed, from docs/gallery/*.json (`make recipes`).

.venv/bin/python docs/gallery.py
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
_HEAD = """\
# Gallery

What each [recipe](recipes.md) was seen to show, at a size that two cores can do. `make recipes`
runs them one after the other with three seeds, each in a worktree of its own; what is current is
skipped, and a run that was killed goes on. This page is made of their reports
(`docs/gallery/*.json`) by `python docs/gallery.py`; none of the figures is typed.

The student is compared with the baseline of the recipe: as many updates on the same start, without
what the claim is about. Intervals are 95 %, over test rows and seeds. A claim is *shown* where its
interval lies above zero, *not shown* where it holds zero, and *the reverse* where it lies below. A
recipe without a result is *not measured*.

| | |
|---|---|
"""
_COLUMNS = "| recipe | claim | teacher | baseline | student | gain | | minutes |"
_COMMAND_COLUMNS = "| recipe | paper | command | exit code | processor |"
_PAPER = re.compile(
    r"""(?:After )?([A-Z][\w-]+(?:(?:, | & | )[A-Z][\w-]+)*(?: et al\.)? \d{4}), "([^"]+?),?\""""
)


def page(root: Path) -> str:
    """Return the page in Markdown."""
    from flows.recipe_heads import FAMILIES, by_family, read_head

    heads = [read_head(path) for path in sorted((root / "recipes").glob("*.yaml"))]
    results = {head.name: _result(root, head.name) for head in heads}
    verdicts = [_verdict(head.over, results[head.name]) for head in heads]
    counts = [f"| {name} | {verdicts.count(name)} |" for name in sorted(set(verdicts))]
    lines = [_HEAD + "\n".join(counts)]
    for family, group in by_family(heads).items():
        about = FAMILIES.get(family, "").capitalize()
        lines += [f"\n## {family}\n", f"{about}.\n", _COLUMNS, "|---" * 8 + "|"]
        lines += [_row(head, results[head.name]) for head in group]
    lines += ["\n## Papers and commands\n", _COMMAND_COLUMNS, "|---" * 5 + "|"]
    lines += [_command_row(head, results[head.name]) for head in heads]
    return "\n".join(lines).rstrip() + "\n"


def _command_row(head: Any, result: Mapping[str, Any] | None) -> str:
    paper = _PAPER.search(head.text)
    source = f'{paper[1]}, "{paper[2]}"' if paper else ""
    before = f"`{head.first}`, " if head.first else ""
    if result is None:
        command = f"{before}`cohobate run --recipe recipes/{head.name}.yaml`"
        return f"| {head.name} | {source} | {command} | | |"
    command = result["command"].replace("|", "\\|")
    where = f"{result['exit_code']} | {result['processor']}"
    return f"| {head.name} | {source} | {before}`{command}` | {where} |"


def _result(root: Path, name: str) -> dict[str, Any] | None:
    path = root / "docs/gallery" / f"{name}.json"
    result: dict[str, Any] | None = json.loads(path.read_text("utf-8")) if path.exists() else None
    return result


def _row(head: Any, result: Mapping[str, Any] | None) -> str:
    name, claim = f"[{head.name}](recipes.md#{head.name})", head.claim
    if result is None:
        return f"| {name} | {claim} | | | | | not measured | |"
    from cohobate.evaluation.score_text import ScoreText

    figures = result["metrics"]
    text = ScoreText(figures["metric"])
    scores = " | ".join(_score(text, figures[arm]) for arm in ("teacher", head.over, "student"))
    gain = f"{text.gain(_gain(head.over, figures))} {text.gain_unit}"
    minutes = f"{result['minutes']:g}"
    if stages := len(result["from_cache"]):
        minutes += f" ({stages} stages from the cache)"
    return f"| {name} | {claim} | {scores} | {gain} | {_verdict(head.over, result)} | {minutes} |"


def _score(text: Any, figure: Mapping[str, float]) -> str:
    low, high = text.score(figure["low"]), text.score(figure["high"])
    return f"{text.score(figure['score'])}{text.unit} [{low}, {high}]"


def _gain(over: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the student's gain over what the claim compares it with.

    Over the student before training no paired interval is kept: the ends are those of the two
    intervals that lie farthest apart, which is wider.
    """
    if over == "baseline":
        gain: dict[str, float] = figures["gain_over_baseline"]
        return gain
    student, before = figures["student"], figures[over]
    return {
        "mean": student["score"] - before["score"],
        "low": student["low"] - before["high"],
        "high": student["high"] - before["low"],
    }


def _verdict(over: str, result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not measured"
    gain = _gain(over, result["metrics"])
    return "shown" if gain["low"] > 0 else "the reverse" if gain["high"] < 0 else "not shown"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    (HERE / "gallery.md").write_text(page(ROOT), "utf-8")
