"""The section `generate` of params.yaml: which prompts a teacher answers, where and how."""

from typing import Literal

from pydantic import Field

from cohobate.backends.backends import Backend
from cohobate.backends.transformers import Transformers
from cohobate.generation.requests import Decoding
from cohobate.params import Section

PromptChoice = Literal["unlabelled", "labelled", "both"]


class GenerateParams(Section):
    """The section `generate` of params.yaml."""

    backend: Backend = Transformers()
    """Where the answers are computed."""
    backends: dict[str, Backend] = Field(default_factory=dict)
    """The same for single teachers, by their key."""
    template: str = "answer"
    """How the teacher is asked: a file in cohobate/backends/templates."""
    decoding: Decoding = Decoding()
    """How the next token is chosen."""
    prompts: PromptChoice = "unlabelled"
    """Which prompts are answered. The right answers to labelled ones are known: by them the filter
    `verified`, judges and pairs by `verifier` decide. `both`: the labelled ones come first. A
    template with roots of its own needs neither."""
    rows: int | None = Field(None, ge=1)
    """Ask about so many prompts, the first of the list; all when not given."""
    samples: int = Field(1, ge=1)
    """Answers drawn for each prompt; more than one needs a temperature above 0."""
    window: int = Field(4000, ge=1)
    """Prompts that are in memory, and sorted by length, together."""
    unanswered: float = Field(0.0, ge=0, le=1)
    """Share of the prompts that a service may leave unanswered; they are listed with the reason."""
    refused: Literal["remember", "ask_again"] = "remember"
    """Prompts that the service refused in an earlier run: remembered as such, or asked again."""
    reasoning: Literal["keep", "drop", "inline"] = "keep"
    """Reasoning that the teacher writes before its answer, in a field of its own or between think
    tags: kept in the row's field `reasoning`; dropped; or put before the answer, between think
    tags, for the student to learn. Templates know it as `reasoning`, the ledger keeps it always."""
    ledger: str = ""
    """A folder or `s3://bucket/prefix` for the ledger; `$COHOBATE_LEDGER` overrules it. Empty:
    `.cohobate/ledger` in the repository's main worktree."""

    def backend_of(self, teacher: str) -> Backend:
        """Return where the answers of a teacher are computed."""
        return self.backends.get(teacher, self.backend)
