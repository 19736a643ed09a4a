"""Capture of a teacher behind an endpoint: its service's log-probabilities of the kept rows.

Rows whose signals came with the answers are taken from `data/signals/<teacher>`. The
others are scored, where the service can (`teachers.<name>.scoring`): one request a row, through
the teacher's ledger, under its rate limits, price and cap. A killed capture sends again only what
was in flight.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cohobate.backends.cost_log import log_cost
from cohobate.backends.endpoint import Endpoint, identity
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.requests import AnswerFunction, LedgerTotals, TeacherRequest
from cohobate.backends.row_signals import NoSignalsError, RowSignals
from cohobate.backends.run_teacher import add_answers, missing_requests
from cohobate.backends.scoring import SCORED, ScoringBackend
from cohobate.backends.served_rows import as_service_reads, served_views
from cohobate.backends.served_store import WITHOUT, ServedVocabulary, as_tensors
from cohobate.backends.settings import GenerateParams
from cohobate.data.examples import Example, examples_of
from cohobate.data.messages import prompt_text
from cohobate.data.records import ADAPT, ANSWER_SIGNALS, Response, write_rows
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.progress import Meter, say
from cohobate.teachers.signal_store.forms import StoredTopK
from cohobate.teachers.signal_store.missing import MISSING, MissingRow
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.signal_store.shards import WORK, ShardWriter, line_chunks, publish
from cohobate.teachers.signal_store.store import ABOUT, SignalStore

_CHUNK = 256  # rows whose signals are in memory as Python numbers


class KeptRow(NamedTuple):
    """A row of the filter, as text and as ids."""

    response: Response
    example: Example
    read: Example
    """As the service reads it (`served_views`)."""


class ServedCapture:
    """A capture of one teacher; the figures of `summary.json` are counted."""

    def __init__(self, teacher: str, capture: CaptureParams, generate: GenerateParams) -> None:
        if not isinstance(capture.signals, StoredTopK):
            raise form_error(teacher)
        self.teacher, self.capture, self.generate = teacher, capture, generate
        self.vocabulary = ServedVocabulary(teacher)
        self.k = min(capture.signals.k, self.vocabulary.requested, self.vocabulary.ids.size)
        self.origin = self.vocabulary.origin(self.k)
        self.missing: list[MissingRow] = []
        self.with_answers = self.scored = 0
        self._store = self._answers_store()
        self._answer_function: AnswerFunction | None = None
        backend = generate.backend_of(teacher)
        self._chat = isinstance(backend, Endpoint) and backend.api == "chat"
        signals = self.vocabulary.address.signals
        scores = signals is not None and signals.scoring != "none"
        self._scoring = (
            ScoringBackend.of(backend, ADAPT / teacher)
            if scores and isinstance(backend, Endpoint)
            else None
        )

    def _answers_store(self) -> SignalStore | None:
        """Return the signals that came with the answers, where they are of the same tokenizer."""
        folder = ANSWER_SIGNALS / self.teacher
        if not (folder / ABOUT).exists():
            return None
        store = SignalStore(folder)
        form, same = store.origin.form, ("teacher", "tokenizer", "template")
        wide = isinstance(form, StoredTopK) and form.k >= self.k
        if wide and all(getattr(store.origin, n) == getattr(self.origin, n) for n in same):
            return store
        return None

    def write(self, rows: Path, folder: Path, unscored: float) -> dict[str, Any]:
        """Write the store of the rows of a file; return key figures.

        Args:
            rows: a file of `Response` rows.
            folder: where the store is published.
            unscored: share of the rows that may stay without signals.

        Raises:
            UserError: more rows than that have none; the service cannot be used, or the cap on
                its cost is reached.
        """
        work, shards, figures = WORK / folder.name, [], []
        limit = LengthLimit(self.capture.max_tokens, self.capture.too_long)
        storage = storage_for(identity(self.teacher), self.generate.ledger)
        with Ledger(storage) as ledger, log_cost(self.teacher, ledger):
            for number, lines in enumerate(line_chunks(rows, self.capture.shard_rows)):
                parsed = [Response.model_validate_json(line) for line in lines]
                encoded = list(limit.apply(encode_all(self.vocabulary.tokenizer, parsed)))
                examples = [examples_of([r], [ids]) for r, ids in zip(parsed, encoded, strict=True)]
                every = [example for own in examples for example in own]
                views = served_views(self.vocabulary.tokenizer, parsed, every, chat=self._chat)
                kept = [
                    KeptRow(row, example, as_service_reads(views, example))
                    for row, own in zip(parsed, examples, strict=True)
                    for example in own
                ]
                shards.append(work / f"served-{number:05}")
                with ShardWriter(shards[-1], number, self.origin) as writer:
                    self._write_rows(kept, ledger, writer)
                figures.append(writer.figures)
        limit.report(f"capture {self.teacher}")
        self._check(unscored, rows)
        tokenizer, keep = self.vocabulary.tokenizer, self.capture.keep_tokenizer
        publish(shards, folder, self.origin, tokenizer, keep_tokenizer=keep)
        shutil.rmtree(work)
        write_rows(folder / MISSING, self.missing)
        return self._summary(figures, folder)

    def _write_rows(self, kept: Sequence[KeptRow], ledger: Ledger, writer: ShardWriter) -> None:
        """Write the signals of some rows: first those that came with the answers."""
        places = (
            self._store.find([row.example for row in kept]) if self._store else [-1] * len(kept)
        )
        own = [(row.example, at) for row, at in zip(kept, places, strict=True) if at >= 0]
        for start in range(0, len(own), _CHUNK):
            examples, at = zip(*own[start : start + _CHUNK], strict=True)
            assert self._store is not None
            stored = self._store.read(at)
            writer.add(examples, self._store.origin.form.narrow(stored, self.origin.form))
        self.with_answers += len(own)
        others = [row for row, at in zip(kept, places, strict=True) if at < 0]
        for start in range(0, len(others), self.generate.window):
            self._score(others[start : start + self.generate.window], ledger, writer)

    def _score(self, rows: Sequence[KeptRow], ledger: Ledger, writer: ShardWriter) -> None:
        """Score rows, and write their signals."""
        if self._scoring is None:
            reason = "no signals came with the answer, and the service does not score text"
            self.missing += [MissingRow(key=row.example.key, reason=reason) for row in rows]
            return
        requests = self._requests(rows, self._scoring)
        failures = self._buy(requests, ledger, self._scoring)
        for start in range(0, len(rows), _CHUNK):
            scored: list[tuple[Example, RowSignals]] = []
            chunk = slice(start, start + _CHUNK)
            for row, request in zip(rows[chunk], requests[chunk], strict=True):
                try:
                    if request.key not in ledger:
                        raise NoSignalsError(failures[request.key])
                    scored.append((row.example, self._signals(row.read, request, ledger)))
                except NoSignalsError as error:
                    self.missing.append(MissingRow(key=row.example.key, reason=str(error)))
            if scored:
                examples, parts = zip(*scored, strict=True)
                writer.add(examples, as_tensors(parts))
            self.scored += len(scored)

    def _requests(self, rows: Sequence[KeptRow], scoring: ScoringBackend) -> list[TeacherRequest]:
        """Return the requests that score rows, as the service would have read them."""
        requests = []
        for row in rows:
            text = prompt_text(row.response.prompt_of_teacher) + (row.response.answer or "")
            requests.append(scoring.request(row.read.ids.tolist(), row.read.spans[0][0], text))
        return requests

    def _buy(
        self, requests: Sequence[TeacherRequest], ledger: Ledger, scoring: ScoringBackend
    ) -> dict[str, str]:
        """Send the requests that the ledger lacks; return why some have no answer, by key."""
        missing = missing_requests(ledger, requests, self.generate.refused)
        failures: dict[str, str] = {}
        if missing:
            history = LedgerTotals(ledger.spent, len(ledger))
            self._answer_function = self._answer_function or scoring.open(
                ADAPT / self.teacher, history
            )
            meter = Meter(f"capture {self.teacher}", len(missing))
            failures = add_answers(
                ledger, self._answer_function, [*missing.values()], SCORED, meter.advance
            )
            meter.finish()
        return ledger.refusals | failures

    def _signals(self, example: Example, request: TeacherRequest, ledger: Ledger) -> RowSignals:
        """Return the signals of a row that was scored."""
        tokens = ledger[request.key].tokens or ()
        start = example.spans[0][0]
        learnt = [tokens[position - start] for position in example.learnt_positions]
        return self.vocabulary.row(learnt, example.labels.tolist(), self.k)

    def _check(self, unscored: float, rows: Path) -> None:
        """Raise `UserError` where more rows than allowed have no signals."""
        count = self.with_answers + self.scored + len(self.missing)
        if not count:
            raise UserError("there are no rows to capture", where=str(rows), fix="dvc repro filter")
        if len(self.missing) < count and len(self.missing) <= unscored * count:
            return
        first = self.missing[0]
        share = min(1.0, (100 * len(self.missing) // count + 1) / 100)
        raise UserError(
            f"{len(self.missing)} of {count} rows have no signals; the first, {first.key}: "
            f"{first.reason}",
            where=f"params.yaml, teachers.{self.teacher}",
            fix=f"cohobate run --set teachers.{self.teacher}.scoring=vllm   (or sglang, where the "
            f"service is one); or leave them out: teachers.{self.teacher}.unscored={share:g}; "
            f"{ANSWER_SIGNALS / self.teacher / WITHOUT} has the reasons",
        )

    def _summary(self, figures: Sequence[dict[str, float]], folder: Path) -> dict[str, Any]:
        tokens = sum(each["tokens"] for each in figures)
        mass = sum(each.get("mean_mass_of_top_k", 0.0) for each in figures)
        size = sum(path.stat().st_size for path in folder.glob("*.bin"))
        counts = {"with_answers": self.with_answers, "scored": self.scored}
        if self.missing:
            counts["missing"] = len(self.missing)
            say(f"{len(self.missing)} rows have no signals: {folder / MISSING} says why")
        return counts | {
            "rows": self.with_answers + self.scored,
            "tokens": tokens,
            "bytes_per_token": round(size / max(tokens, 1), 1),
            "mean_mass_of_top_k": round(mass / max(tokens, 1), 4),
        }


def form_error(teacher: str) -> UserError:
    """Return the error of a form that no service can fill."""
    return UserError(
        f"the teacher {teacher} is behind an endpoint: its signals are the likeliest tokens at "
        "temperature 1",
        where="params.yaml, capture.signals",
        fix="cohobate run --set 'capture.signals={type: top_k, k: 20}'",
    )
