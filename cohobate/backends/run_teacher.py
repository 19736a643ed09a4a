"""Run one teacher on all prompts, step by step; answers in the ledger are not computed again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from cohobate.backends.api_errors import fix_in_reason
from cohobate.backends.endpoint import Endpoint, read_address
from cohobate.backends.ledger import Ledger
from cohobate.backends.prices import Price
from cohobate.backends.prompts import count_prompts, keeps_answer, prompt_rows, seed_pool
from cohobate.backends.reply_checks import limit_in_reasoning
from cohobate.backends.requests import (
    AnswerFunction,
    LedgerTotals,
    NoAnswer,
    TeacherRequest,
    answer_key,
)
from cohobate.backends.task_pool import TaskPool
from cohobate.backends.templates import Conversation, Step, Template
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.data.messages import Prompt, prompt_key
from cohobate.data.records import ADAPT, ENDPOINT, GENERATE, Response, Row
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding, split_reasoning
from cohobate.progress import Meter, counting_early, say

if TYPE_CHECKING:
    from cohobate.backends.backends import Backend
    from cohobate.backends.settings import GenerateParams
    from cohobate.backends.signal_log import SignalLog

_FEW = 0.05  # share of unanswered prompts up to which a new limit of the length is not worth it
_NO_MATCH = "the reply does not match the pattern of the step"


class FailedPrompt(BaseModel):
    """A prompt that gave no row."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    sample: int
    step: str
    reason: str
    reply: str | None = None
    """The reply of the teacher's service, where there was one."""


class TeacherRun:
    """One teacher answers all prompts of a template; the figures of `summary.json` are counted."""

    def __init__(
        self,
        teacher: str,
        params: "GenerateParams",
        template: Template,
        ledger: Ledger,
        signal_log: "SignalLog | None" = None,
    ) -> None:
        self.teacher, self.params, self.template, self.ledger = teacher, params, template, ledger
        self.backend, self.signal_log = generating_backend(teacher, params), signal_log
        self.latest: Conversation | None = None
        """What the response that was yielded last was made of; None of a reference answer."""
        self.failed: list[FailedPrompt] = []
        self.prompts = self.computed = self.from_ledger = self.unanswered = self.refused = 0
        self.requested = 0
        """Times that a prompt was begun with, reference answers aside."""
        self.kept = 0
        """Rows whose reference answer is the response."""
        self._reasons: list[str] = []
        """Why prompts were not answered."""
        self.written = self.finished = 0
        self.measured, self.logprob = 0, 0.0
        self.prompt_tokens = self.answer_tokens = 0
        self._answer_function: AnswerFunction | None = None
        self._pool = seed_pool(teacher, params, template)
        self._tasks = TaskPool.of(params, template, self._pool)

    def responses(self) -> Iterator[Response]:
        """Yield the responses in the order of the prompts; what the ledger lacks is computed."""
        prompts = count_prompts(self.teacher, self.params, self.template)
        requests = prompts * self.params.attempts * len(self.template.steps)
        meter = Meter(f"answers of {self.teacher}", requests)
        for wave in range(self.params.pool.waves if self.params.pool else 1):
            yield from self._wave(wave, meter)
            if self._tasks:
                self._tasks.end_wave(f"{self.teacher}, wave {wave + 1}")
            # later waves are made of this one: they wait for what is missing
            if self._lacks_answers():
                break
        meter.finish()
        refused = f", {self.refused} prompts refused" if self.refused else ""
        refused += f", {self.kept} reference answers kept" if self.kept else ""
        say(
            f"{self.teacher}: {self.computed} answers computed, {self.from_ledger} taken from the "
            f"ledger{refused}"
        )

    def _wave(self, wave: int, meter: Meter) -> Iterator[Response]:
        """Yield the responses of one pass through the prompts; reference answers in the first."""
        rows = prompt_rows(self.teacher, self.params, self.template)
        # samples of a prompt are neighbours, in the order of the prompts
        samples = range(wave * self.params.samples, (wave + 1) * self.params.samples)
        while window := list(islice(rows, self.params.window)):
            self.prompts += len(window)
            kept = [row for row in window if not wave and keeps_answer(self.params, row)]
            self.kept += len(kept)
            self.latest = None
            yield from map(self._kept, kept)
            unanswered = [row for row in window if not keeps_answer(self.params, row)]
            _refuse_raw_text(unanswered)
            conversations = [Conversation(row, sample) for row in unanswered for sample in samples]
            self.requested += len(conversations)
            for step in self.template.steps:
                conversations = self._run_step(step, conversations, meter)
            for conversation in conversations:
                self.latest = conversation
                for row in self.template.rows:
                    response = row.response(
                        conversation, self.teacher, self.params.reasoning, self._pool
                    )
                    yield self._counted(response)

    def check(self) -> None:
        """Fail where more prompts than `generate.unanswered` allows have no answer.

        Raises:
            UserError: naming the first reason.
        """
        if self._lacks_answers():
            raise UserError(
                f"{self.unanswered} prompts were not answered; the first: {self._reasons[0]}",
                where=str(GENERATE / self.teacher / "failed.jsonl"),
                fix=suggest_fix(self._reasons[0], self.unanswered, self.refused, self.requested),
            )

    def summary(self) -> dict[str, Any]:
        """Return the figures of `summary.json`."""
        written = max(self.written, 1)
        figures: dict[str, Any] = {
            "responses": self.written,
            "finished": round(self.finished / written, 4),
        }
        if self._tasks:
            figures |= self._tasks.summary()
        if self.kept:
            figures["reference_answers"] = self.kept
        if self.measured:  # not every service returns log-probabilities
            figures["mean_logprob"] = round(self.logprob / self.measured, 4)
        if self.failed:
            figures["failed"] = len(self.failed)
        if isinstance(self.backend, Endpoint) and self.prompt_tokens:
            used = (self.prompt_tokens, self.answer_tokens)
            figures |= {"prompt_tokens": used[0], "completion_tokens": used[1]}
            price = self.backend.price or Price()
            figures["cost_usd"] = round(price.of(*used, self.backend.share), 6)
        return figures

    def _run_step(
        self, step: Step, conversations: Sequence[Conversation], meter: Meter
    ) -> list[Conversation]:
        """Return the conversations after one more step; a step may split one into several."""
        made = self._tasks.drawn if self._tasks else ()
        prompts = [step.prompt_for(each, self._pool, made) for each in conversations]
        requests = [self._make_request(c, p) for c, p in zip(conversations, prompts, strict=True)]
        missing = missing_requests(self.ledger, requests, self.params.refused)
        # counted before answers are added: what this call computes is not from the ledger
        self.from_ledger += sum(request.key in self.ledger for request in requests)
        meter.advance(len(requests) - len(missing))
        failures = self._add_answers(list(missing.values()), meter) if missing else {}
        # refusals of earlier runs, and the failures of this one
        failures = self.ledger.refusals | failures
        continued: list[Conversation] = []
        for conversation, prompt, request in zip(conversations, prompts, requests, strict=True):
            if request.key not in self.ledger:
                reply = next(reversed(self.ledger.replies[request.key]), None)
                self._not_answered(step, conversation, request, failures[request.key], reply)
                continue
            answer = split_reasoning(self.ledger[request.key])
            self._count_tokens(answer)
            if answer.is_cut_in_reasoning:  # by a local model: such a reply of a service is refused
                reason = limit_in_reasoning(self.params.decoding.max_tokens)
                self._not_answered(step, conversation, request, reason, answer.reasoning)
                continue
            if not (continuations := step.on_reply(conversation, prompt, answer)):
                self._fail(step, conversation, _NO_MATCH, answer.text)
            if self._tasks and step.new_task:
                novel = self._tasks.add
                continuations = [c for c in continuations if novel(c.replies[step.new_task])]
            continued += continuations
        return continued

    def _lacks_answers(self) -> bool:
        """Return whether more prompts have no answer than `generate.unanswered` allows."""
        return self.unanswered > self.params.unanswered * self.requested

    def _add_answers(self, requests: list[TeacherRequest], meter: Meter) -> dict[str, str]:
        """Add answers to the ledger; return the reasons of requests without one, by key."""
        self._answer_function = self._answer_function or self._open()
        with counting_early(meter):
            failures = add_answers(
                self.ledger, self._answer_function, requests, self.params.decoding, meter.advance
            )
        self.computed += len(requests) - len(failures)
        return failures

    def _open(self) -> AnswerFunction:
        checkpoint = ADAPT / self.teacher
        history = LedgerTotals(self.ledger.spent, len(self.ledger))
        if self.signal_log and isinstance(self.backend, Transformers | Vllm):
            return self.backend.open(checkpoint, history, self.signal_log)
        return self.backend.open(checkpoint, history)

    def _make_request(self, conversation: Conversation, prompt: Prompt) -> TeacherRequest:
        return make_request(
            self.backend, self.params.decoding, conversation.row, prompt, conversation.sample
        )

    def _count_tokens(self, answer: Answer) -> None:
        """Add the service's token counts, of answers bought now or in an earlier run."""
        if answer.usage:
            self.prompt_tokens += answer.usage.prompt_tokens
            self.answer_tokens += answer.usage.answer_tokens

    def _not_answered(
        self,
        step: Step,
        conversation: Conversation,
        request: TeacherRequest,
        reason: str,
        reply: str | None,
    ) -> None:
        self.unanswered += 1
        # those in the ledger as refused, or as cut off, are not computed again
        self.refused += request.key in self.ledger.refusals or request.key in self.ledger
        self._reasons.append(reason)
        self._fail(step, conversation, reason, reply)

    def _fail(
        self, step: Step, conversation: Conversation, reason: str, reply: str | None = None
    ) -> None:
        row, sample = conversation.row, conversation.sample
        failed = FailedPrompt(id=row.id, sample=sample, step=step.name, reason=reason, reply=reply)
        self.failed.append(failed)

    def _kept(self, row: Row) -> Response:
        """Return a row's reference answer as the response."""
        return self._counted(Response(**row.model_dump(), teacher=self.teacher, finish="stop"))

    def _counted(self, response: Response) -> Response:
        self.written += 1
        self.finished += response.finish == "stop"
        self.measured += response.logprob is not None
        self.logprob += response.logprob or 0.0
        return response


def _refuse_raw_text(rows: Sequence[Row]) -> None:
    if raw := next((row for row in rows if row.is_raw_text), None):
        raise UserError(
            "raw text has no prompt that a teacher could answer",
            where=f"row {raw.id}, and generate.reference_answers",
            fix="cohobate run --set generate.reference_answers=keep",
        )


def generating_backend(teacher: str, params: "GenerateParams") -> "Backend":
    """Return where a teacher's answers are computed, with the log-probabilities that it gives."""
    backend = params.backend_of(teacher)
    if isinstance(backend, Endpoint) and (ADAPT / teacher / ENDPOINT).exists():
        return backend.with_signals(read_address(ADAPT / teacher), params.decoding)
    return backend


def make_request(
    backend: "Backend", decoding: Decoding, row: Row, prompt: Prompt, sample: int = 0
) -> TeacherRequest:
    """Return the request for an answer to `prompt`, under the key of everything that decides it."""
    key_parts = [backend.key_parts(), decoding.model_dump(), prompt_key(prompt)]
    return TeacherRequest(answer_key(*key_parts, sample), prompt, f"{row.id}/{sample}")


def add_answers(
    ledger: Ledger,
    answer_function: AnswerFunction,
    requests: Sequence[TeacherRequest],
    decoding: Decoding,
    advance: Callable[[int], None],
) -> dict[str, str]:
    """Add answers to the ledger, batch by batch; return why requests have none, by key."""
    failures: dict[str, str] = {}
    notes: set[str] = set()
    for batch in answer_function(requests, decoding):
        ledger.append(batch)  # before anything else: from here on a kill loses none of it
        for key, outcome in batch.items():
            if isinstance(outcome, NoAnswer):
                failures[key] = outcome.reason
            elif outcome.note and outcome.note not in notes:
                say(f"a reply had an unusual format, its answer is kept: {outcome.note}")
                notes.add(outcome.note)
        advance(sum(_is_settled(outcome) for outcome in batch.values()))
    # a request that was retried may have its answer by now
    return {key: reason for key, reason in failures.items() if key not in ledger}


def missing_requests(
    ledger: Ledger, requests: Iterable[TeacherRequest], refused: Literal["remember", "ask_again"]
) -> dict[str, TeacherRequest]:
    """Return the requests without an answer by key; refused ones only with `ask_again`."""
    again = refused == "ask_again"
    return {
        request.key: request
        if again
        else request._replace(replies=ledger.replies.get(request.key, ()))
        for request in requests
        if request.key not in ledger and (again or request.key not in ledger.refusals)
    }


def suggest_fix(reason: str, unanswered: int, refused: int, requested: int) -> str:
    """Return the fix where more prompts than allowed have no answer.

    Args:
        reason: why the first was not.
        unanswered: prompts without an answer.
        refused: those of them that are not sent again.
        requested: answers that were requested.
    """
    # rounded up, so that the share allows for all of them
    share = min(1.0, (100 * unanswered // max(requested, 1) + 1) / 100)
    allow = f"allow for them: cohobate run --set generate.unanswered={share:g}"
    if command := fix_in_reason(reason):
        if share <= _FEW:
            return f"{allow}; or {command}, which computes all answers anew"
        return f"{command}   (or {allow})"
    if refused < unanswered:
        return f"repeat the command, which sends {unanswered - refused} of them again; or {allow}"
    return f"{allow}; or send them again: cohobate run --set generate.refused=ask_again"


def _is_settled(outcome: Answer | NoAnswer) -> bool:
    return isinstance(outcome, Answer) or outcome.state != "retried"
