"""The page docs/recipes.md: the gallery of recipes, from the comments and keys of recipes/."""

import re
from pathlib import Path

from flows import recipes
from flows.recipe_heads import FAMILIES, RecipeHead, by_family, read_head

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

Several are written together, as long as no key has two values; else the keys and the files are
named:

```bash
cohobate run --recipe recipes/code.yaml --recipe recipes/sequence-kd.yaml
```

Where a column is empty, the setting of `params.yaml` stays. Costs are those on the embedded
default task, on two cores. What each was seen to achieve is in the [gallery](gallery.md), and more
on the default task in [results](results.md). `make pages` writes this page from these files.

To add one: a file in `recipes/` whose comment at the top is like the others', with a family. What
its phases have in common is written once:

```yaml
train:
  defaults: {updates: 90, batch_size: 32, learning_rate: 2.0e-3, schedule: linear, warmup: 0.1}
  sft: {method: sft, from: init_student, ...}
  gkd: {method: on_policy, from: train/sft, learning_rate: 5.0e-4, ...}
```

`defaults` completes every phase that the recipe names in that section (`baseline: {}` names one and
adds nothing of its own). In `params.yaml` all phases are written in full.
"""


def page(folder: Path) -> str:
    """Return the page in Markdown."""
    heads = [read_head(path) for path in sorted(folder.glob("*.yaml"))]
    families = by_family(heads)
    lines = [_HEAD]
    for family, group in families.items():
        lines += [f"\n**{family}**: {FAMILIES[family]}\n"]
        lines += ["| recipe | what it does | methods | student |", "|---|---|---|---|"]
        lines += [_row(head) for head in group]
    for head in heads:
        commands = [*filter(None, [head.first]), f"cohobate run --recipe recipes/{head.name}.yaml"]
        command = "\n".join(["```bash", *commands, "```\n"])
        lines += [f"\n## {head.name}\n", f"{head.title} {_links(head.text)}\n", command, head.cost]
        lines += [f"\nClaim: {head.claim}"] if head.claim else []
    return "\n".join(lines).rstrip() + "\n"


def _row(head: RecipeHead) -> str:
    """Return a recipe's line: methods of its phases but the baseline, type of the first student."""
    document = recipes.read(head.path.parent, head.path.name)
    sections = (document.get(name) or {} for name in ("assist", "train"))
    phases = (item for section in sections for item in section.items() if item[0] != "baseline")
    methods = [phase["method"] for _, phase in phases if "method" in (phase or {})]
    shown = ", ".join(f"`{method}`" for method in dict.fromkeys(methods))
    student = (document.get("init_student") or {}).get("type", "")
    student = f"`{student}`" if student else ""
    return f"| [{head.name}](#{head.name}) | {head.title} | {shown} | {student} |"


def _links(text: str) -> str:
    """Turn the names of pages into links."""
    return re.sub(r"docs/([\w-]+)\.md(#[\w-]+)?", r"[\1](\1.md\2)", text)
