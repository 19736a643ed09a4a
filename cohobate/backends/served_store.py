"""Signal stores of a teacher behind an endpoint, written from what its service sent.

Two stages write one. `generate` keeps the log-probabilities that came with the answers:
`data/signals/<teacher>`. `capture` takes these for the rows that were kept, and scores the
others (cohobate/backends/served_capture.py).
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.backends.endpoint import identity, read_address
from cohobate.backends.row_signals import NoSignalsError, RowSignals, ServiceToken, row_signals
from cohobate.backends.run_teacher import TeacherRun
from cohobate.backends.settings import GenerateParams
from cohobate.backends.token_names import TokenIds
from cohobate.data.records import ADAPT, ANSWER_SIGNALS, ENDPOINT, Response, write_rows
from cohobate.data.tokenized import encode_renderable
from cohobate.models import checkpoints
from cohobate.models.vocabularies import template_hash, vocabulary_hash
from cohobate.progress import say
from cohobate.teachers.signal_store.forms import StoredTopK
from cohobate.teachers.signal_store.missing import MissingRow
from cohobate.teachers.signal_store.store import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.teachers.signal_store.form import Signals

WITHOUT = "without_signals.jsonl"
"""In data/signals/<teacher>: the answers without signals, and why."""
_WORK = Path(".cohobate/generate")
_CHUNK = 1024  # rows that are tokenised, matched and written together


class ServedVocabulary:
    """The tokenizer that stands for a served teacher's, and what a store of it is called."""

    def __init__(self, teacher: str) -> None:
        folder = ADAPT / teacher
        self.teacher, self.address = teacher, read_address(folder)
        self.tokenizer: PreTrainedTokenizerBase = checkpoints.load_tokenizer(folder)
        self.ids = TokenIds(self.tokenizer)

    @property
    def requested(self) -> int:
        """Log-probabilities that are requested at each token."""
        assert self.address.signals is not None
        return self.address.signals.top_logprobs

    def origin(self, k: int) -> Origin:
        """Return what a store of K ids a token says of itself."""
        return Origin(
            teacher=identity(self.teacher),
            tokenizer=vocabulary_hash(self.tokenizer),
            template=template_hash(self.tokenizer),
            vocabulary=self.ids.size,
            width=0,
            form=StoredTopK(type="top_k", k=min(k, self.ids.size)),
            number_format="served",
        )

    def row(
        self,
        tokens: Sequence[ServiceToken],
        learnt: Sequence[int],
        k: int,
        requested: int | None = None,
    ) -> RowSignals:
        """Return the signals of a row (`row_signals`)."""
        count = self.requested if requested is None else requested
        return row_signals(tokens, learnt, self.ids, count, k)


class ServiceSignals:
    """The signals that come with a teacher's answers; rows stream through it as they are written.

    Example:
        collector = ServiceSignals.of("main", generate)
        write_rows(path, collector.collect(run.responses(), run))
        collector.publish()
    """

    def __init__(self, teacher: str) -> None:
        from cohobate.teachers.signal_store.shards import ShardWriter

        self.vocabulary = ServedVocabulary(teacher)
        self.origin = self.vocabulary.origin(self.vocabulary.requested)
        self.folder = ANSWER_SIGNALS / teacher
        self.missing: list[MissingRow] = []
        self._keys: set[str] = set()
        self.closing_assumed = 0
        self._shard = _WORK / teacher / "shard-00000"
        self._writer = ShardWriter(self._shard, 0, self.origin)
        self._rows: list[tuple[Response, tuple[ServiceToken, ...] | str]] = []

    @classmethod
    def of(cls, teacher: str, generate: GenerateParams) -> "ServiceSignals | None":
        """Return the collector of a teacher; None where no signals come with its answers."""
        if not (ADAPT / teacher / ENDPOINT).exists():
            return None
        signals = read_address(ADAPT / teacher).signals
        if signals is None or not signals.come_with(generate.decoding):
            return None
        return cls(teacher)

    def collect(self, responses: Iterator[Response], run: TeacherRun) -> Iterator[Response]:
        """Yield the responses; write the signals of each to the store."""
        with self._writer:
            for response in responses:
                self._rows.append((response, _tokens_of(response, run)))
                if len(self._rows) == _CHUNK:
                    self._flush()
                yield response
            self._flush()

    def publish(self) -> dict[str, Any]:
        """Publish the store, and the list of answers without signals; return key figures."""
        from cohobate.teachers.signal_store.shards import publish

        publish([self._shard], self.folder, self.origin, self.vocabulary.tokenizer)
        shutil.rmtree(self._shard.parent)
        write_rows(self.folder / WITHOUT, self.missing)
        rows = int(self._writer.figures["rows"])
        reasons = Counter(_kind(row.reason) for row in self.missing)
        without = "".join(f"; {n} have none: {reason}" for reason, n in reasons.most_common(3))
        say(f"{self.vocabulary.teacher}: signals came with {rows} answers{without}")
        figures: dict[str, Any] = {"rows": rows, "tokens": int(self._writer.figures["tokens"])}
        if self.missing:
            figures["without_signals"] = len(self.missing)
        if self.closing_assumed:
            figures["closing_tokens_assumed"] = self.closing_assumed
        return figures

    def _flush(self) -> None:
        """Match the rows that wait with their tokens, and write them."""
        from cohobate.data.examples import examples_of, row_key

        rows = [response for response, _ in self._rows]
        matched: list[tuple[Example, RowSignals]] = []
        encoded = encode_renderable(self.vocabulary.tokenizer, rows)
        for (response, tokens), ids in zip(self._rows, encoded, strict=True):
            # a template can make several rows of one key: the filter leaves one of them
            if (key := row_key(response)) in self._keys:
                continue
            self._keys.add(key)
            try:
                if isinstance(tokens, str):
                    raise NoSignalsError(tokens)
                if not ids.spans:
                    raise NoSignalsError("the row cannot be rendered")
                if len(ids.spans) != 1:
                    raise NoSignalsError("earlier turns are learnt with the answer")
                signals = self.vocabulary.row(tokens, ids.completion_ids, self.vocabulary.requested)
            except NoSignalsError as error:
                self.missing.append(MissingRow(key=key, reason=str(error)))
                continue
            matched += [(example, signals) for example in examples_of([response], [ids])]
            self.closing_assumed += signals.closing_assumed
        if matched:
            examples, parts = zip(*matched, strict=True)
            self._writer.add(examples, as_tensors(parts))
        self._rows.clear()


def _tokens_of(response: Response, run: TeacherRun) -> tuple[ServiceToken, ...] | str:
    """Return the tokens that a response was generated as; or why there are none of its own."""
    conversation = run.latest
    if conversation is None or conversation.answer is None:
        return "a reference answer: the teacher did not generate it"
    answer = conversation.answer
    sent = conversation.first_prompt
    if len(run.template.steps) > 1 or sent != response.prompt_of_teacher or response.prefix:
        return "the row's prompt is not the one that was sent"
    if answer.reasoning and not response.reasoning:
        return "the reasoning before the answer is left out of the row"
    if answer.finish != "stop":
        return "the answer is cut off"
    return answer.tokens or answer.note or "the service gave no log-probabilities"


def as_tensors(rows: Sequence[RowSignals]) -> "Signals":
    """Return the signals of rows as the store takes them, one row after the other."""
    import torch

    return {
        "ids_NK": torch.tensor([ids for row in rows for ids in row.ids_SK], dtype=torch.int64),
        "logp_NK": torch.tensor([logp for row in rows for logp in row.logp_SK]),
        "rest_logprob_NQ": torch.tensor([rest for row in rows for rest in row.rest_S])[:, None],
    }


def _kind(reason: str) -> str:
    """Return a reason without the figures and tokens that differ from row to row."""
    return reason.partition(":")[0]
