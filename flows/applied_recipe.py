"""The recipes that params.yaml was last written with, and what they replaced.

`flows/recipes.py` writes this section of params.yaml; no stage reads it.
"""

from typing import Any

from pydantic import Field

from cohobate.params import Section


class AppliedRecipe(Section):
    """The section `recipe` of params.yaml: written by `cohobate run --recipe`, not by hand."""

    files: tuple[str, ...] = ()
    """The recipes; none where it is empty."""
    file: str = ""
    """The recipe, as earlier versions wrote it."""
    replaced: dict[str, Any] = Field(default_factory=dict)
    """The values before, by dotted key; null: there was none. The next recipe restores them."""
