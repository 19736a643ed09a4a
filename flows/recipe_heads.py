"""The comments at the top of recipes: what each does, after whom, its cost, claim and family."""

import re
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

FAMILIES: Mapping[str, str] = {
    "white-box": "the teacher's distributions or hidden states",
    "black-box": "the teacher's text alone",
    "on-policy": "the student's own answers",
    "preferences": "pairs of answers, the better one first",
    "students": "how the student is made smaller",
    "encoders": "classifiers, masked models, embedders",
    "tasks": "other data, several tasks or teachers",
}
OTHER = "other"
"""Family of the recipes that name none."""
_PARTS = re.compile(r"\b(?=First: |Cost on |Claim: |Claim over the start: |Family: )")


class RecipeHead(NamedTuple):
    """One recipe as the comment at its top describes it."""

    path: Path
    title: str
    """The method, and in a sentence what it does."""
    text: str
    """Its source, and what differs from it."""
    first: str
    """A command that writes the recipe's data; empty: it needs none."""
    cost: str
    claim: str
    """What the system's authors found of the student."""
    over: Literal["baseline", "initial"]
    """What the claim compares it with: `evaluate.baseline`, or the student before training."""
    family: str

    @property
    def name(self) -> str:
        """Name of the file, without its ending."""
        return self.path.stem


def read_head(path: Path) -> RecipeHead:
    """Read the comment at the top of a recipe."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines())
    title, *rest = [line.removeprefix("#").strip() for line in lines] or [""]
    text, *parts = [part.strip() for part in _PARTS.split(" ".join(rest))]
    named = {part.split()[0].rstrip(":"): part for part in parts}
    word, _, claim = named.get("Claim", "").partition(": ")
    over: Literal["baseline", "initial"] = "initial" if word.endswith("start") else "baseline"
    family = named.get("Family", "").partition(": ")[2].rstrip(".")
    first = named.get("First", "").partition(": ")[2]
    cost = named.get("Cost", "")
    return RecipeHead(path, title, text, first, cost, claim, over, family or OTHER)


def by_family(heads: list[RecipeHead]) -> dict[str, list[RecipeHead]]:
    """Return the recipes of each family, the known families first."""
    families = [*FAMILIES, *sorted({head.family for head in heads} - FAMILIES.keys())]
    groups = {name: [head for head in heads if head.family == name] for name in families}
    return {name: group for name, group in groups.items() if group}
