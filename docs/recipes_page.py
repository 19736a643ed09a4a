"""The page docs/recipes.md: the gallery of recipes, from the comments and keys of recipes/."""

import re
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

_HEAD = """\
# Recipes

A recipe is a file laid over `params.yaml` that makes a round a known way to distil. It is written
into that file in place of the last one; `--recipe none` restores what it replaced. Your own edits
of other keys stay.

```bash
cohobate recipes
cohobate run --recipe recipes/gkd.yaml
cohobate run --recipe none
```

Where a column is empty, the setting of `params.yaml` stays. Costs are those on the embedded
default task, on two cores. What the methods achieve there is in [results](results.md). To add one:
a file in `recipes/` whose comment at the top is like the others'. `make pages` writes this page
from these files.
"""


class Recipe(NamedTuple):
    """One recipe as its file describes it."""

    name: str
    title: str
    """The method, and in a sentence what it does."""
    text: str
    """Its source, and what differs from it."""
    cost: str
    methods: tuple[str, ...]
    """Of its phases but the baseline; empty where they are those of params.yaml."""
    student: str
    """Type of the initial student; empty where it is that of params.yaml."""


def page(folder: Path) -> str:
    """Return the page in Markdown."""
    recipes = [_read(path) for path in sorted(folder.glob("*.yaml"))]
    lines = [_HEAD, "| recipe | what it does | methods | student |", "|---|---|---|---|"]
    for one in recipes:
        methods = ", ".join(f"`{method}`" for method in one.methods)
        student = f"`{one.student}`" if one.student else ""
        lines.append(f"| [{one.name}](#{one.name}) | {one.title} | {methods} | {student} |")
    for one in recipes:
        command = f"```bash\ncohobate run --recipe recipes/{one.name}.yaml\n```\n"
        lines += [f"\n## {one.name}\n", f"{one.title} {one.text}\n", command, one.cost]
    return "\n".join(lines).rstrip() + "\n"


def _read(path: Path) -> Recipe:
    text = path.read_text("utf-8")
    comment = takewhile(lambda line: line.startswith("#"), text.splitlines())
    title, *rest = (line.removeprefix("#").strip() for line in comment)
    body, word, cost = " ".join(rest).partition("Cost on")
    document = YAML(typ="safe").load(text)
    sections = (document.get(name) or {} for name in ("assist", "train"))
    phases = (item for section in sections for item in section.items() if item[0] != "baseline")
    methods = [phase["method"] for _, phase in phases if "method" in (phase or {})]
    return Recipe(
        name=path.stem,
        title=title,
        text=_links(body.strip()),
        cost=word + cost,
        methods=tuple(dict.fromkeys(methods)),
        student=(document.get("init_student") or {}).get("type", ""),
    )


def _links(text: str) -> str:
    """Turn the names of pages into links."""
    return re.sub(r"docs/([\w-]+)\.md(#[\w-]+)?", r"[\1](\1.md\2)", text)
