"""The section `generate` of params.yaml: which prompts a teacher answers, where and how."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from cohobate.backends.backends import Backend
from cohobate.backends.transformers import Transformers
from cohobate.generation.requests import Decoding
from cohobate.params import Section

PromptChoice = Literal["unlabelled", "labelled", "both"]


class GrowingPool(Section):
    """Waves in which a teacher makes up tasks; what is novel is answered, and joins the pool.

    Wang et al. 2023, "Self-Instruct", sections 2.2 and 2.3.
    """

    waves: int = Field(3, ge=1)
    """How often the prompts are gone through. Later waves draw `made` from the tasks of earlier
    ones."""
    novelty: float = Field(0.7, gt=0, le=1)
    """A task is novel where its ROUGE-L to every task of the pool is below this."""


class GenerateParams(Section):
    """The section `generate` of params.yaml."""

    backend: Backend = Transformers()
    """Where the answers are computed."""
    backends: dict[str, Backend] = Field(default_factory=dict)
    """The same for single teachers, by their key."""
    template: str = "answer"
    """How prompts are presented to the teacher: a file in cohobate/backends/templates."""
    decoding: Decoding = Decoding()
    """How the next token is chosen."""
    prompts: PromptChoice = "unlabelled"
    """Which prompts are answered. Labelled prompts have a reference answer, which the filter
    `verified`, judges and preferences by `verifier` use. `both`: the labelled ones come first. A
    template with root prompts of its own uses neither."""
    reference_answers: Literal["ignore", "keep"] = "ignore"
    """Reference answers of labelled rows, and raw text: `ignore` has the teacher answer the prompts
    all the same; `keep` makes them responses as they are, without a request, so that they are
    filtered, captured and learnt with the others. `prompts` must be `labelled` or `both`."""
    routes: dict[str, str] = Field(default_factory=dict)
    """By task, the teacher that alone answers its prompts, such as `{sums: sums-expert}`. Prompts
    of other tasks go to every teacher."""
    rows: int | None = Field(None, ge=1)
    """Number of prompts to answer, from the start of the list; all when not given."""
    samples: int = Field(1, ge=1)
    """Answers sampled for each prompt; more than one needs a temperature above 0."""
    pool: GrowingPool | None = None
    """For templates that make up tasks, such as `alpaca` and `self-instruct`: tasks that are too
    much like a seed or an earlier task are left out. The seeds are the first 1,000 prompts. None:
    one wave, and every task is answered."""
    window: int = Field(4000, ge=1)
    """Prompts that are in memory, and sorted by length, together."""
    unanswered: float = Field(0.0, ge=0, le=1)
    """Share of the prompts that may stay without an answer; failed.jsonl lists them."""
    refused: Literal["remember", "ask_again"] = "remember"
    """Prompts that the service refused in an earlier run: counted as refused, or sent again."""
    reasoning: Literal["keep", "drop"] = "keep"
    """Reasoning that the teacher generates before its answer, in a field of its own or between
    think tags. `keep`: the row has it, and the student learns it before the answer, as its chat
    template renders reasoning; `evaluate.decoding.max_tokens` has to allow for it. `drop`: the
    student learns the answer alone. Templates can use it as `reasoning`; the ledger always keeps
    it."""
    signals: Literal["auto", "off"] = "auto"
    """Distributions of what the teacher generates. `auto`: they are kept in the form of
    `capture.signals` where that is `top_k` and the teacher has `signals: true` and its weights
    here; `capture` then runs the teacher for rows without them alone. `off`: `capture` runs it for
    all rows. Neither changes an answer."""
    ledger: str = ""
    """A folder or `s3://bucket/prefix` for the ledger; `$COHOBATE_LEDGER` overrules it. Empty:
    `.cohobate/ledger` in the repository's main worktree."""

    @model_validator(mode="after")
    def _reads_what_it_keeps(self) -> "GenerateParams":
        if self.reference_answers == "keep" and self.prompts == "unlabelled":
            raise ValueError(
                "unlabelled rows have no reference answers: prompts must be labelled or both"
            )
        return self

    @field_validator("reasoning", mode="before")
    @classmethod
    def _not_inline(cls, reasoning: str) -> str:
        if reasoning == "inline":
            raise ValueError(
                "inline is now called keep: the student learns the reasoning as its chat template "
                "renders it (cohobate upgrade renames it)"
            )
        return reasoning

    def goes_to(self, teacher: str, task: str | None) -> bool:
        """Return whether a teacher answers the prompts of a task."""
        return self.routes.get(task or "", teacher) == teacher

    @property
    def attempts(self) -> int:
        """How often the teacher gets each prompt: its samples, in every wave."""
        return self.samples * (self.pool.waves if self.pool else 1)

    def backend_of(self, teacher: str) -> Backend:
        """Return where the answers of a teacher are computed."""
        return self.backends.get(teacher, self.backend)
