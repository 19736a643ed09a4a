"""The teacher answers the prompts that have no label.

In:  data/collect/unlabelled.jsonl, and the teacher's checkpoint models/adapt/<teacher>
Out: data/generate/<teacher>/responses.jsonl, in the order of the prompts, every one of them:

    {"answer": " animal", "finish": "stop", "group": "", "id": "9f8a3c…", "logprob": -0.0213,
     "origin": "teacher", "prompt": "Definition: a small rodent\\nCategory:", "sample": 0,
     "teacher": "main"}

Answers come from the ledger where they were given before (tasks/generate/ledger.py): a rerun, a
crash or a longer list of prompts computes only what is missing.

What holds: a run that was killed and taken up again, however often, writes the same bytes as one
that was not. In float32 answers do not depend on the batch at all; in bfloat16 a batch of another
size rounds differently (seen: one answer in 600 another, where two were all but tied). Batches are
made within windows of the list, so whole windows keep their answers when the list grows; prompts
that are added to a window that was answered already make batches of their own.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks import checkpoints
from tasks.decoding import Decoding
from tasks.errors import UserError
from tasks.generate.backends import Answering, Ask, Backend, Transformers
from tasks.generate.ledger import Ledger, key_of
from tasks.params import Section
from tasks.progress import Meter, say
from tasks.records import (
    ADAPT,
    GENERATE,
    UNLABELLED,
    Response,
    Row,
    read_rows,
    write_json,
    write_rows,
)


class GenerateParams(Section):
    """The section `generate` of params.yaml."""

    backend: Backend = Transformers()
    """Where the answers are computed."""
    decoding: Decoding = Decoding()
    """How the next token is chosen."""
    rows: int | None = Field(None, ge=1)
    """Answer so many prompts, the first of the list; all when not given."""
    samples: int = Field(1, ge=1)
    """Answers drawn for each prompt; more than one needs a temperature above 0."""
    window: int = Field(4000, ge=1)
    """Prompts that are in memory, and sorted by length, together."""

    def asks(self, row: Row) -> list[Ask]:
        """Return what is asked of the teacher for one row: an ask for each sample."""
        decided_by = [self.backend.decided_by(), self.decoding.model_dump(), _plain(row.prompt)]
        return [
            Ask(key_of(*decided_by, sample), row.prompt, f"{row.id}/{sample}")
            for sample in range(self.samples)
        ]


def run(item: str, generate: GenerateParams) -> None:
    """Let the teacher `item` answer the unlabelled prompts.

    Raises:
        UserError: there is no prompt, several samples are asked of greedy decoding, or the
            teacher's checkpoint is damaged.
    """
    if generate.samples > 1 and generate.decoding.temperature == 0:
        raise UserError(
            "several samples of greedy decoding are all the same",
            where="params.yaml, section generate",
            mend="cohobate run --set generate.decoding.temperature=0.7",
        )
    figures = Figures()
    with Ledger(checkpoints.verify(ADAPT / item)) as ledger:
        responses = _responses(item, generate, ledger)
        count = write_rows(GENERATE / item / "responses.jsonl", figures.over(responses))
    if not count:
        raise UserError("there is no prompt to answer", where=str(UNLABELLED))
    write_json(GENERATE / item / "summary.json", figures.summary())


def _responses(teacher: str, generate: GenerateParams, ledger: Ledger) -> Iterator[Response]:
    """Yield the responses in the order of the prompts; what the ledger lacks is computed first."""
    rows = islice(read_rows(UNLABELLED, Row), generate.rows)
    meter = Meter(f"answers of {teacher}", generate.samples * _count(UNLABELLED, generate.rows))
    answering: Answering | None = None
    known = computed = 0
    while window := list(islice(rows, generate.window)):
        wanted = [(row, generate.asks(row)) for row in window]
        missing = {ask.key: ask for _, asks in wanted for ask in asks if ask.key not in ledger}
        known += len(window) * generate.samples - len(missing)
        meter.advance(len(window) * generate.samples - len(missing))
        if missing:
            answering = answering or generate.backend.open(ADAPT / teacher)
            for batch in answering(list(missing.values()), generate.decoding):
                ledger.append(batch)
                computed += len(batch)
                meter.advance(len(batch))
        for row, asks in wanted:
            yield from _of_row(row, teacher, asks, ledger)
    meter.finish()
    say(f"{teacher}: {computed} answers computed, {known} taken from the ledger")


def _of_row(row: Row, teacher: str, asks: list[Ask], ledger: Ledger) -> Iterator[Response]:
    for sample, ask in enumerate(asks):
        text, finish, logprob = ledger[ask.key]
        yield Response(
            id=row.id,
            prompt=row.prompt,
            answer=text,
            group=row.group,
            origin="teacher",
            teacher=teacher,
            sample=sample,
            finish=finish,
            logprob=None if logprob is None else round(logprob, 6),
        )


class Figures:
    """Counts responses on their way to the file."""

    def __init__(self) -> None:
        self.responses = self.finished = 0
        self.logprob = 0.0

    def over(self, responses: Iterable[Response]) -> Iterator[Response]:
        """Yield the responses, and count them."""
        for response in responses:
            self.responses += 1
            self.finished += response.finish == "stop"
            self.logprob += response.logprob or 0.0
            yield response

    def summary(self) -> dict[str, float]:
        """Return the figures of all responses seen."""
        return {
            "responses": self.responses,
            "finished": round(self.finished / self.responses, 4),
            "mean_logprob": round(self.logprob / self.responses, 4),
        }


def _count(path: Path, most: int | None) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in islice(lines, most))


def _plain(prompt: Any) -> Any:
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
