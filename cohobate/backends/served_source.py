"""A served teacher as the target source of on-policy training: its service scores the answers.

Rows are sent as soon as they are generated, by a thread of their own: the service scores them while
the student generates others. An update begins when all of its rows are settled, so that nothing
depends on timing. Scores go through the teacher's ledger, under its price, cap and limits: training
that was killed buys none again.
"""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cohobate.backends.cost_log import log_cost
from cohobate.backends.endpoint import Endpoint, identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.requests import AnswerFunction, LedgerTotals, TeacherRequest
from cohobate.backends.row_signals import NoSignalsError, RowSignals
from cohobate.backends.run_teacher import add_answers, missing_requests
from cohobate.backends.scoring import SCORED, ScoringBackend
from cohobate.backends.served_rows import as_service_reads, served_views
from cohobate.backends.served_store import ServedVocabulary, as_tensors
from cohobate.backends.settings import GenerateParams
from cohobate.data.examples import Example
from cohobate.data.records import ADAPT, Row
from cohobate.errors import UserError
from cohobate.losses.base_divergence import Divergence
from cohobate.models.vocabularies import vocabulary_hash
from cohobate.params import load, validated
from cohobate.progress import say
from cohobate.teachers.micro_batch import MicroBatch
from cohobate.teachers.signal_store.forms import StoredTopK

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.fast.forward_pass import ForwardOutputs
    from cohobate.losses.layer_matching import LayerMatching
    from cohobate.losses.soft_targets import SoftTargets
    from cohobate.teachers.ensembles import Progressive

_HANDLE = 15  # hex digits of a request's key: they fit into an int64


class ServedSource:
    """Soft targets from a teacher behind an endpoint, for rows that are made while training runs.

    Args:
        teacher: its key in params.yaml.
        tokenizer: the student's, which must be the one that stands for the teacher's.
        terms: those of the loss: each must be one over the likeliest tokens and the rest.
        candidates: ids that the student chooses at each token of its answers (`submit`).
        generate: where its answers are computed; that of params.yaml when not given.

    Raises:
        UserError: the service does not score text, or a term or the tokenizer does not fit.
    """

    matching: "LayerMatching | None" = None
    progressive: "Progressive | None" = None

    def __init__(
        self,
        teacher: str,
        tokenizer: "PreTrainedTokenizerBase",
        terms: Sequence[Any],
        candidates: int = 0,
        generate: GenerateParams | None = None,
    ) -> None:
        self.teacher = teacher
        self.generate = generate or validated(GenerateParams, load()["generate"], "generate")
        backend, self.vocabulary = self.generate.backend_of(teacher), ServedVocabulary(teacher)
        signals = self.vocabulary.address.signals
        if signals is None or signals.scoring == "none" or not isinstance(backend, Endpoint):
            raise UserError(
                f"the service of the teacher {teacher} does not score given text",
                where=f"params.yaml, teachers.{teacher}",
                fix=f"teachers.{teacher}: {{signals: true, scoring: vllm}} (or sglang)",
            )
        if vocabulary_hash(tokenizer) != vocabulary_hash(self.vocabulary.tokenizer):
            raise UserError(
                f"the student has another vocabulary than the teacher {teacher}",
                where=f"params.yaml, teachers.{teacher}.tokenizer",
                fix="a student with the teacher's tokenizer, its vocabulary whole",
            )
        _check_terms(terms)
        self._scoring = ScoringBackend.of(backend, ADAPT / teacher)
        self._chat = backend.api == "chat"
        self._views: dict[str, Example] = {}
        # the token itself is kept too, likely or not: the student generated it
        most = max(self.vocabulary.requested, candidates)
        self._k = min(most + 1, self.vocabulary.ids.size)
        self._candidates: dict[str, Sequence[Sequence[int]]] = {}
        """Of rows as the service reads them, by the keys of requests without candidates."""
        self._pool = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._waiting: list[TeacherRequest] = []
        """Requests that the thread has not taken yet."""
        self._error: UserError | None = None
        """Of a service that cannot be used."""
        self._pending: dict[str, Future[None]] = {}
        self._scored: dict[str, RowSignals | str] = {}
        self._signals: dict[int, RowSignals] = {}
        self._answer_function: AnswerFunction | None = None
        self._ledger: Ledger | None = None
        self.refused = 0
        """Rows without signals, over all updates."""
        self._seconds, self._waited = 0.0, 0.0
        """In which rows were scored, and in which training waited for it."""

    @property
    def live_models(self) -> "list[PreTrainedModel]":
        """The frozen teachers in memory: none."""
        return []

    def __enter__(self) -> "ServedSource":
        self._ledger = Ledger(storage_for(identity(self.teacher), self.generate.ledger)).__enter__()
        self._cost_log = log_cost(self.teacher, self._ledger)
        self._cost_log.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        say(
            f"the teacher {self.teacher} scored rows for {self._seconds:.1f} s, of which training "
            f"waited {self._waited:.1f} s"
        )
        self._cost_log.__exit__(None, None, None)
        if self._ledger is not None:
            self._ledger.__exit__(*error)

    def attach(self, rows: Sequence[Row], examples: Sequence[Example]) -> None:
        """Encode the prompts that the service reads and the student does not (`served_views`).

        Args:
            rows: all rows.
            examples: the rows as the student reads them.

        Raises:
            UserError: an answer has other tokens behind the teacher's prompt; names the row.
        """
        self._views = served_views(self.vocabulary.tokenizer, rows, examples, chat=self._chat)

    def submit(
        self,
        rows: Sequence[Example],
        candidates: Sequence[Sequence[Sequence[int]]] = (),
    ) -> None:
        """Have rows scored, without waiting for it; rows that are learnt nowhere are left out.

        Args:
            rows: as the student reads them.
            candidates: for each row the ids, at each token of its answer, whose log-probabilities
                are requested. Without them those of the teacher's likeliest ids are.
        """
        for row, chosen in zip(rows, candidates, strict=False):
            self._candidates[self._plain_request(self._read(row)).key] = chosen
        requests = [self._request(self._read(row)) for row in rows if row.length]
        new = {r.key: r for r in requests if r.key not in self._pending}
        if new:
            with self._lock:
                self._waiting += new.values()
            # what waits by then is sent together: rows that end one by one do not queue up
            self._pending |= dict.fromkeys(new, self._pool.submit(self._score_waiting))

    def settled(self, rows: Sequence[Example]) -> list[Example]:
        """Return the rows of an update once all are scored; those without signals are masked.

        Raises:
            UserError: the service cannot be used, or the cap is reached.
        """
        self.submit(rows)
        began = time.monotonic()
        for row in rows:
            if row.length:
                self._pending[self._request(self._read(row)).key].result()
        self._waited += time.monotonic() - began
        self._signals.clear()
        settled = []
        for row in rows:
            read = self._read(row)
            key = self._request(read).key
            scored = self._scored.get(key)
            if isinstance(scored, RowSignals):
                self._signals[_handle(key)] = scored.at(read.learnt_positions - read.spans[0][0])
            elif scored is not None:
                self.refused += 1
                say(f"a row is not learnt: the teacher {self.teacher} has no signals: {scored}")
                row = replace(row, spans=((len(row.ids),) * 2,))  # noqa: PLW2901
            settled.append(row)
        # rows of a replay buffer are in the ledger
        self._pending.clear()
        kept = {self._plain_request(self._read(row)).key for row in rows}
        self._candidates = {key: c for key, c in self._candidates.items() if key in kept}
        self._scored.clear()
        return settled

    def collate(self, rows: Sequence[Example]) -> dict[str, Any]:
        """Return which rows these are."""
        import torch

        keys = [self._request(self._read(row)).key for row in rows]
        return {"served_B": torch.tensor([_handle(key) for key in keys])}

    def targets(self, batch: MicroBatch) -> "tuple[SoftTargets, ForwardOutputs | None]":
        """Return the service's distributions at the learnt tokens."""
        from cohobate.losses.top_k import TopK

        numbers = batch.teacher_inputs["served_B"].tolist()
        signals = as_tensors([self._signals[n] for n in numbers if n in self._signals])
        moved = {name: tensor.to(batch.ids_BS.device) for name, tensor in signals.items()}
        # (N, K) also where all rows are masked
        ids_NK, logp_NK = (moved[name].reshape(-1, self._k) for name in ("ids_NK", "logp_NK"))
        return TopK(ids_NK, logp_NK, moved["rest_logprob_NQ"]), None

    def _read(self, row: Example) -> Example:
        return as_service_reads(self._views, row)

    def _request(self, read: Example) -> TeacherRequest:
        plain = self._plain_request(read)
        if not (chosen := self._candidates.get(plain.key)):
            return plain
        return self._scoring.request(plain.ids or (), plain.start, "", chosen)

    def _plain_request(self, read: Example) -> TeacherRequest:
        start = read.spans[0][0] if read.length else read.prompt_length
        return self._scoring.request(read.ids.tolist(), start, "")

    def _score_waiting(self) -> None:
        """Score all rows that wait; runs in the one thread that uses the ledger."""
        with self._lock:
            requests, self._waiting = self._waiting, []
        if self._error is not None:  # of earlier requests, these among them perhaps
            raise self._error
        began = time.monotonic()
        try:
            self._score(requests)
        except UserError as error:
            self._error = error
            raise
        self._seconds += time.monotonic() - began

    def _score(self, requests: list[TeacherRequest]) -> None:
        """Buy what the ledger lacks, and read all."""
        ledger = self._ledger
        assert ledger is not None, "used outside of its `with` block"
        missing = missing_requests(ledger, requests, self.generate.refused)
        failures: dict[str, str] = {}
        if missing:
            self._answer_function = self._answer_function or self._scoring.open(
                ADAPT / self.teacher, LedgerTotals(ledger.spent, len(ledger))
            )
            failures = add_answers(
                ledger, self._answer_function, [*missing.values()], SCORED, lambda _: None
            )
        for request in requests:
            if request.key in ledger:
                self._scored[request.key] = self._signals_of(request, ledger)
            elif request.key in ledger.refusals:
                self._scored[request.key] = ledger.refusals[request.key]
            else:
                raise UserError(
                    f"a row was not scored: {failures[request.key]}",
                    where=f"teacher {self.teacher}",
                    fix="repeat the command when the service works: training goes on from its "
                    "last checkpoint, and scores that were bought are kept",
                )

    def _signals_of(self, request: TeacherRequest, ledger: Ledger) -> RowSignals | str:
        tokens, learnt = ledger[request.key].tokens or (), (request.ids or ())[request.start :]
        try:
            # their number was checked when they were bought
            requested = 1 if request.candidates else None
            return self.vocabulary.row(tokens, learnt, self._k, requested)
        except NoSignalsError as error:
            return str(error)


def _check_terms(terms: Sequence[Any]) -> None:
    StoredTopK(type="top_k").check(terms)
    for term in terms:
        if isinstance(term, Divergence) and not term.on_stored_signals:
            raise UserError(
                f"{term.type} needs all logits of the teacher, and its service has the likeliest",
                where="terms",
                fix="another divergence, or a teacher whose weights are here",
            )


def _handle(key: str) -> int:
    """Return a number that stands for a row in a batch."""
    return int(key[:_HANDLE], 16)
