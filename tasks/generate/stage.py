"""The teacher answers the prompts: those that have no label, unless `generate.prompts` says more.

In:  data/collect/unlabelled.jsonl or labelled.jsonl, and models/adapt/<teacher>: its checkpoint,
     or its address
Out: data/generate/<teacher>/responses.jsonl, in the order of the prompts:

    {"answer": " animal", "finish": "stop", "group": "", "id": "9f8a3c…", "logprob": -0.0213,
     "origin": "teacher", "prompt": "Definition: a small rodent\\nCategory:", "sample": 0,
     "teacher": "main"}

     data/generate/<teacher>/failed.jsonl, the prompts that came to no row, and why:

    {"id": "0b7c51…", "reason": "the reply has not the form that the step asks for", "reply": …,
     "sample": 0, "step": "answer"}

Answers come from the ledger where they were given before (tasks/generate/ledger.py): a rerun, a
crash or a longer list of prompts computes only what is missing.

What holds: a run that was killed and taken up again, however often, writes the same bytes as one
that was not. In float32 answers do not depend on the batch at all; in bfloat16 a batch of another
size rounds differently (seen: one answer in 600 another, where two were all but tied). Batches are
made within windows of the list, so whole windows keep their answers when the list grows; prompts
that are added to a window that was answered already make batches of their own.
"""

from typing import Literal

from pydantic import Field

from tasks.errors import UserError
from tasks.generate.backends import Backend, Transformers
from tasks.generate.endpoint import place_of
from tasks.generate.interview import Interview
from tasks.generate.ledger import Ledger, key_of
from tasks.generate.places import journal_of
from tasks.generate.prompts import Chosen, files_of
from tasks.generate.spending import noted
from tasks.generate.templates import template_of
from tasks.generate.vllm import Vllm
from tasks.models import checkpoints
from tasks.models.decoding import Decoding
from tasks.params import Section
from tasks.rows.records import ADAPT, ENDPOINT, GENERATE, write_json, write_rows


class GenerateParams(Section):
    """The section `generate` of params.yaml."""

    backend: Backend = Transformers()
    """Where the answers are computed."""
    backends: dict[str, Backend] = Field(default_factory=dict)
    """The same for single teachers, by their key."""
    template: str = "answer"
    """How the teacher is asked: a file in tasks/generate/templates."""
    decoding: Decoding = Decoding()
    """How the next token is chosen."""
    prompts: Chosen = "unlabelled"
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


def run(item: str, generate: GenerateParams) -> None:
    """Let the teacher `item` answer the chosen prompts.

    Raises:
        UserError: there is no prompt, several samples are asked of greedy decoding, the teacher's
            checkpoint is damaged, or its service does not answer.
    """
    if generate.samples > 1 and generate.decoding.temperature == 0:
        raise UserError(
            "several samples of greedy decoding are all the same",
            where="params.yaml, section generate",
            mend="cohobate run --set generate.decoding.temperature=0.7",
        )
    folder = GENERATE / item
    journal = journal_of(identity(item), generate.ledger)
    with Ledger(journal) as ledger, noted(item, ledger):
        interview = Interview(item, generate, template_of(generate.template), ledger)
        write_rows(folder / "responses.jsonl", interview.responses())
    write_rows(folder / "failed.jsonl", interview.failed)
    interview.check()
    backend, summary = generate.backend_of(item), interview.summary()
    if isinstance(backend, Transformers | Vllm):
        summary["number_format"] = backend.number_format
    write_json(folder / "summary.json", summary)
    if not interview.prompts:
        files = ", ".join(map(str, files_of(generate.prompts)))
        mend = "choose others by generate.prompts"
        raise UserError("there is no prompt to answer", where=files, mend=mend)


def identity(teacher: str) -> str:
    """Return what says which model a teacher is: the hash of its weights, or of its address."""
    if (ADAPT / teacher / ENDPOINT).exists():
        place = place_of(ADAPT / teacher)
        return key_of("endpoint", place.url, place.model, place.revision)
    return checkpoints.verify(ADAPT / teacher)
