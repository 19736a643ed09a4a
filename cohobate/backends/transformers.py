"""The backend `transformers`: the teacher's own weights, on this machine or on Ray's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cohobate.backends.endpoint import check_weights
from cohobate.backends.requests import (
    EMPTY_LEDGER,
    AnswerFunction,
    LedgerTotals,
    Outcomes,
    TeacherRequest,
)
from cohobate.data.tokenized import prompt_ids
from cohobate.generation.decoding import plan_batches
from cohobate.generation.requests import Batching, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section

if TYPE_CHECKING:
    from cohobate.backends.loaded_teacher import AnsweredBatch
    from cohobate.backends.signal_log import SignalLog
    from cohobate.teachers.signal_store.top_k_form import StoredTopK


class Transformers(Section):
    """The teacher's own weights, on this machine or on Ray's."""

    type: Literal["transformers"] = "transformers"
    precision: Precision = "auto"
    """Number format of weights and matrix products."""
    batching: Batching = Batching()
    threads: int = Field(2, ge=1)
    """Batches in parallel on a CPU. The answers do not depend on it."""
    workers: int = Field(1, ge=1)
    """Processes with a model each, on Ray where there are several; `threads` is for one alone."""
    gpus_each: float = Field(0, ge=0)
    """GPUs of each of several workers."""

    def key_parts(self) -> list[Any]:
        """Return the params of this backend that an answer depends on: they are part of its key."""
        return [self.type, self.number_format]

    @property
    def number_format(self) -> NumberFormat:
        """The number format of weights and matrix products; workers get it from here."""
        device = "cuda" if self.gpus_each else checkpoints.accelerator()
        return resolve(self.precision, device)

    def open(
        self,
        checkpoint: Path,
        history: LedgerTotals = EMPTY_LEDGER,
        signal_log: "SignalLog | None" = None,
    ) -> AnswerFunction:
        """Load the teacher; return the function that answers, and keeps signals in `signal_log`.

        Batches depend on the requests alone, and the requests that an interrupted run left make up
        the remaining batches of the whole run (see `cohobate.generation.decoding.plan_batches`).

        Raises:
            UserError: the weights are not on this machine.
        """
        check_weights(checkpoint)
        tokenizer = checkpoints.load_tokenizer(checkpoint)
        generate = self._batch_function(checkpoint, signal_log.form if signal_log else None)

        def answers(requests: Sequence[TeacherRequest], decoding: Decoding) -> Iterator[Outcomes]:
            ids = prompt_ids(tokenizer, [request.prompt for request in requests])
            pairs = zip(ids, requests, strict=True)
            prompts = [Request.of(request.prompt, i, request.draw) for i, request in pairs]
            # rows of like length together; `batch` holds positions in `requests`
            batches = plan_batches(prompts, decoding, self.batching)
            generated = generate([[prompts[n] for n in batch] for batch in batches], decoding)
            for batch, answered in zip(batches, generated, strict=True):
                if signal_log and answered.signals:
                    # on disk before the answers: one in the ledger is not generated again
                    signal_log.append(answered.signals)
                yield {requests[n].key: a for n, a in zip(batch, answered.answers, strict=True)}

        return answers

    def _batch_function(
        self, checkpoint: Path, form: "StoredTopK | None"
    ) -> "Callable[[list[list[Request]], Decoding], Iterator[AnsweredBatch]]":
        """Return the function that answers batches and yields them in their order."""
        if self.workers > 1:
            from cohobate.backends.ray_workers import start_workers

            opened = (checkpoint.resolve(), self.number_format, self.batching, form)
            return start_workers(opened, self.workers, self.gpus_each)
        from cohobate.backends.loaded_teacher import LoadedTeacher
        from cohobate.thread_map import thread_map

        teacher = LoadedTeacher(checkpoint, self.number_format, self.batching, form)

        def in_this_process(
            batches: list[list[Request]], decoding: Decoding
        ) -> "Iterator[AnsweredBatch]":
            for _, answered in thread_map(
                lambda b: teacher.answer(b, decoding), batches, self.threads
            ):
                yield answered

        return in_this_process
