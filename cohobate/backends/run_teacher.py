"""One teacher is asked about all prompts, step by step, but for what the ledger knows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from cohobate.backends.api_errors import advice
from cohobate.backends.endpoint import Endpoint
from cohobate.backends.ledger import Ledger
from cohobate.backends.prices import Price
from cohobate.backends.prompts import count_of, rows_of
from cohobate.backends.requests import Answering, Ask, History, Unanswered, key_of
from cohobate.backends.templates import Exchange, Prompt, Step, Template
from cohobate.data.records import (
    ADAPT,
    GENERATE,
    Response,
    Row,
    prompt_text,
)
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding, split_reasoning
from cohobate.progress import Meter, say

if TYPE_CHECKING:
    from cohobate.backends.backends import Backend
    from cohobate.backends.settings import GenerateParams

_POOL = 1000  # prompts that `seeds` draws from
_NO_FORM = "the reply has not the form that the step asks for"


class Failed(BaseModel):
    """A prompt that came to no row."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    sample: int
    step: str
    reason: str
    reply: str | None = None
    """What the teacher's service sent, where it did."""


class Interview:
    """The questions to one teacher, its answers, and the count of both."""

    def __init__(
        self, teacher: str, params: "GenerateParams", template: Template, ledger: Ledger
    ) -> None:
        self.teacher, self.params, self.template, self.ledger = teacher, params, template, ledger
        self.backend = params.backend_of(teacher)
        self.failed: list[Failed] = []
        self.prompts = self.computed = self.known = self.unanswered = self.refused = 0
        self._reasons: list[str] = []
        """Why prompts were not answered."""
        self.written = self.finished = 0
        self.measured, self.logprob = 0, 0.0
        self.prompt_tokens = self.answer_tokens = 0
        self._answering: Answering | None = None
        pool = islice(rows_of(params, template), _POOL)
        self._pool = [prompt_text(row.prompt) for row in pool]

    def responses(self) -> Iterator[Response]:
        """Yield the responses in the order of the prompts; what the ledger lacks is computed."""
        rows = rows_of(self.params, self.template)
        asks = count_of(self.params, self.template) * self.params.samples * len(self.template.steps)
        meter = Meter(f"answers of {self.teacher}", asks)
        while window := list(islice(rows, self.params.window)):
            self.prompts += len(window)
            samples = range(self.params.samples)
            exchanges = [Exchange(row, sample) for row in window for sample in samples]
            for step in self.template.steps:
                exchanges = self._ask(step, exchanges, meter)
            for exchange in exchanges:
                for row in self.template.rows:
                    yield self._counted(row.response(exchange, self.teacher, self.params.reasoning))
        meter.finish()
        computed, known = self.computed, self.known
        said = f"{self.teacher}: {computed} answers computed, {known} taken from the ledger"
        say(f"{said}, {self.refused} prompts refused" if self.refused else said)

    def check(self) -> None:
        """Refuse to go on when too many prompts were not answered.

        Raises:
            UserError: naming the first reason.
        """
        if self.unanswered > self.params.unanswered * self.prompts * self.params.samples:
            raise UserError(
                f"{self.unanswered} prompts were not answered; the first: {self._reasons[0]}",
                where=str(GENERATE / self.teacher / "failed.jsonl"),
                fix=how_to_go_on(self._reasons[0], self.unanswered, self.refused),
            )

    def summary(self) -> dict[str, Any]:
        """Return the figures that are worth showing."""
        written = max(self.written, 1)
        figures: dict[str, Any] = {
            "responses": self.written,
            "finished": round(self.finished / written, 4),
        }
        if self.measured:  # not every service tells
            figures["mean_logprob"] = round(self.logprob / self.measured, 4)
        if self.failed:
            figures["failed"] = len(self.failed)
        if isinstance(self.backend, Endpoint) and self.prompt_tokens:
            used = (self.prompt_tokens, self.answer_tokens)
            figures |= {"prompt_tokens": used[0], "completion_tokens": used[1]}
            price = self.backend.price or Price()
            figures["cost_usd"] = round(price.of(*used, self.backend.share), 6)
        return figures

    def _ask(self, step: Step, exchanges: Sequence[Exchange], meter: Meter) -> list[Exchange]:
        """Return how the exchanges go on after one more step."""
        prompts = [step.ask(exchange, self._pool) for exchange in exchanges]
        asks = [self._wanted(e, p) for e, p in zip(exchanges, prompts, strict=True)]
        missing = missing_of(self.ledger, asks, self.params.refused)
        self.known += sum(ask.key in self.ledger for ask in asks)
        meter.advance(len(asks) - len(missing))
        failures = self._answer(list(missing.values()), meter) if missing else {}
        failures = self.ledger.refusals | failures
        following: list[Exchange] = []
        for exchange, prompt, ask in zip(exchanges, prompts, asks, strict=True):
            if ask.key not in self.ledger:
                self._not_answered(step, exchange, ask, failures[ask.key])
                continue
            answer = split_reasoning(self.ledger[ask.key])
            self._count_tokens(answer)
            if not (heard := step.hear(exchange, prompt, answer)):
                self._fail(step, exchange, _NO_FORM, answer.text)
            following += heard
        return following

    def _answer(self, asks: list[Ask], meter: Meter) -> dict[str, str]:
        """Have the asks answered into the ledger; return why some were not."""
        history = History(self.ledger.spent, len(self.ledger))
        self._answering = self._answering or self.backend.open(ADAPT / self.teacher, history)
        failures = answered_into(
            self.ledger, self._answering, asks, self.params.decoding, meter.advance
        )
        self.computed += len(asks) - len(failures)
        return failures

    def _wanted(self, exchange: Exchange, prompt: Prompt) -> Ask:
        return ask_of(self.backend, self.params.decoding, exchange.row, prompt, exchange.sample)

    def _count_tokens(self, answer: Answer) -> None:
        """Count what the service counted, whether it was bought now or in a run before."""
        if answer.usage:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.answer_tokens += answer.usage.answer_tokens

    def _not_answered(self, step: Step, exchange: Exchange, ask: Ask, reason: str) -> None:
        self.unanswered += 1
        self.refused += ask.key in self.ledger.refusals
        self._reasons.append(reason)
        self._fail(step, exchange, reason, next(reversed(self.ledger.replies[ask.key]), None))

    def _fail(self, step: Step, exchange: Exchange, reason: str, reply: str | None = None) -> None:
        row, sample = exchange.row, exchange.sample
        failed = Failed(id=row.id, sample=sample, step=step.name, reason=reason, reply=reply)
        self.failed.append(failed)

    def _counted(self, response: Response) -> Response:
        self.written += 1
        self.finished += response.finish == "stop"
        self.measured += response.logprob is not None
        self.logprob += response.logprob or 0.0
        return response


def ask_of(backend: "Backend", how: Decoding, row: Row, prompt: Prompt, sample: int = 0) -> Ask:
    """Return the ask for an answer to `prompt`, under the key of all that decides it."""
    decided_by = [backend.decided_by(), how.model_dump(), _plain(prompt)]
    return Ask(key_of(*decided_by, sample), prompt, f"{row.id}/{sample}")


def answered_into(
    ledger: Ledger,
    answering: Answering,
    asks: Sequence[Ask],
    how: Decoding,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Have the asks answered into the ledger, batch after batch; return why some were not."""
    failures: dict[str, str] = {}
    notes: set[str] = set()
    for batch in answering(asks, how):
        ledger.append(batch)
        for key, one in batch.items():
            if isinstance(one, Unanswered):
                failures[key] = one.reason
            elif one.note and one.note not in notes:
                say(f"a reply was odd, and its answer kept: {one.note}")
                notes.add(one.note)
        advance(sum(_is_settled(one) for one in batch.values()))
    return {key: reason for key, reason in failures.items() if key not in ledger}


def missing_of(
    ledger: Ledger, asks: Iterable[Ask], refused: Literal["remember", "ask_again"]
) -> dict[str, Ask]:
    """Return the asks that have no answer yet, by key, but for those that were refused."""
    again = refused == "ask_again"
    return {
        ask.key: ask if again else ask._replace(replies=ledger.replies.get(ask.key, ()))
        for ask in asks
        if ask.key not in ledger and (again or ask.key not in ledger.refusals)
    }


def how_to_go_on(reason: str, unanswered: int, refused: int) -> str:
    """Return what to do where more prompts than allowed for were not answered.

    Args:
        reason: why the first was not.
        unanswered: prompts without an answer.
        refused: those of them that are not asked again.
    """
    allow = "allow for them by generate.unanswered"
    if command := advice(reason):
        return f"{command}   (or {allow})"
    if refused < unanswered:
        return f"run again: {unanswered - refused} of them are asked again; or {allow}"
    return f"{allow}; or ask again: cohobate run --set generate.refused=ask_again"


def _is_settled(outcome: Answer | Unanswered) -> bool:
    return isinstance(outcome, Answer) or outcome.state != "retried"


def _plain(prompt: Prompt) -> Any:
    return prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt]
