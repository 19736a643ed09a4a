"""Where answers are computed.

A backend is opened on a teacher and then given prompts that have no answer yet. It yields answers
in batches; each batch is safe in the ledger before the next is computed, so a backend that talks to
a paid service yields every answer as it comes.

To add one: a class with `decided_by` and `open`, and its name in `Backend` at the bottom.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tasks import checkpoints
from tasks.checkpoints import Precision
from tasks.decoding import (
    Answer,
    Batching,
    Completion,
    Decoding,
    Request,
    as_text,
    decode,
    plan,
    stop_ids,
)
from tasks.errors import UserError
from tasks.generate.asks import Answering, Ask
from tasks.generate.openai import OpenAI
from tasks.generate.openai_batch import OpenAIBatch
from tasks.params import Section
from tasks.records import ENDPOINT
from tasks.text import prompt_ids


class Transformers(Section):
    """The teacher's own weights, on this machine."""

    type: Literal["transformers"] = "transformers"
    precision: Precision = "bfloat16"
    """Number format of weights and matrix products."""
    batching: Batching = Batching()
    threads: int = 2
    """Batches side by side on a CPU. The answers do not depend on it."""

    def decided_by(self) -> list[str]:
        """Return what of this backend decides an answer, and so belongs to its key."""
        return [self.type, self.precision]

    def open(self, checkpoint: Path, spent: float = 0.0) -> Answering:
        """Load the teacher; return the function that answers.

        Its batches depend on the asks alone, and the asks that an interrupted run left over make
        the remaining batches of the whole run (see `tasks.decoding.plan`).

        Raises:
            UserError: the weights are not here.
        """
        from tasks.side_by_side import side_by_side

        if (checkpoint / ENDPOINT).exists():
            raise UserError(
                f"the weights of the teacher {checkpoint.name} are not here, it is behind an "
                "endpoint",
                where="params.yaml, generate.backend",
                mend="cohobate run --set 'generate.backend={type: openai}'",
            )
        device = checkpoints.accelerator()
        model, tokenizer = checkpoints.load(checkpoint, precision=self.precision, device=device)
        stop = stop_ids(model, tokenizer)

        def answers(asks: Sequence[Ask], how: Decoding) -> Iterator[Mapping[str, Answer]]:
            ids = prompt_ids(tokenizer, [ask.prompt for ask in asks])
            requests = [Request(i, ask.draw) for i, ask in zip(ids, asks, strict=True)]

            def write(batch: list[int]) -> list[Completion]:
                return decode(model, [requests[n] for n in batch], how, stop)

            batches = plan(requests, how, self.batching)
            for batch, written in side_by_side(write, batches, self.threads):
                texts = [as_text(tokenizer, completion) for completion in written]
                yield {asks[n].key: text for n, text in zip(batch, texts, strict=True)}

        return answers


Backend = Annotated[Transformers | OpenAI | OpenAIBatch, Field(discriminator="type")]
