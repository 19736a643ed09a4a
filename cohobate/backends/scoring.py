"""Scoring requests: a service's log-probabilities of given text, sent as token ids.

One request a row: its prompt and answer as the prompt of the request, at most one token generated.

    vllm      POST /v1/completions   prompt: [ids], prompt_logprobs: K
              choices[0].prompt_logprobs: [null, {"123": {"logprob": -0.2, "rank": 1, ...}, ...}, …]
    sglang    POST /generate         input_ids: [ids], return_logprob, logprob_start_len,
                                     top_logprobs_num: K
              meta_info.input_token_logprobs: [[-0.2, 123, null], …], and input_top_logprobs

Of candidates that the student chose, instead of the teacher's likeliest:

    vllm      POST /inference/v1/generate   token_ids, prompt_logprob_token_ids: [[ids], …]
              prompt_token_id_logprobs: base64 of an array (scored tokens, candidates)

The reply is checked against the ids that were sent. One that does not match is refused and kept in
the ledger with its reason, so that it is not bought again.
"""

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cohobate.backends.api_errors import RefusedError, ReplyError
from cohobate.backends.endpoint import NO_HEADERS, Endpoint, read_address
from cohobate.backends.openai import OpenAI
from cohobate.backends.replies import TokenLimits
from cohobate.backends.requests import TeacherRequest, answer_key
from cohobate.backends.row_signals import NoSignalsError, ServiceToken, check_numbers
from cohobate.backends.service_reply import read_reply
from cohobate.backends.token_names import id_name, same_model
from cohobate.errors import UserError
from cohobate.generation.requests import Answer, Decoding

SCORED = Decoding(max_tokens=1)
"""A request generates one token, which is not used: some services refuse none."""
SCORES_CANDIDATES = "/inference/v1/generate"
"""Path of vLLM's requests that score ids of one's own choice."""
_DIGITS = 6  # of a log-probability in the ledger: the store rounds to three


class ScoringBackend(OpenAI):
    """The requests that score given text, with the limits, price and cap of a backend."""

    address: Any = None
    """A `ServiceAddress`."""

    @classmethod
    def of(cls, backend: Endpoint, checkpoint: Path) -> "ScoringBackend":
        """Return the scoring requests of a teacher behind an endpoint.

        Args:
            backend: where its answers are computed; of a batch service the limits are the default.
            checkpoint: `models/adapt/<teacher>`.
        """
        left_out = {"type", "api", "logprobs", "top_logprobs", "extra"}
        shared = type(backend).model_fields.keys() & OpenAI.model_fields.keys() - left_out
        fields = {name: getattr(backend, name) for name in shared}
        return cls(type="openai", address=read_address(checkpoint), **fields)

    def path_of(self, request: TeacherRequest) -> str:
        """Return where a request is sent: below the endpoint's address, or beside it."""
        return self._service(request).path(self.address.url)

    def _service(self, request: TeacherRequest) -> "ScoringService":
        return CANDIDATES if request.candidates else SERVICES[self.address.signals.scoring]

    def request(
        self,
        ids: Sequence[int],
        start: int,
        text: str,
        candidates: Sequence[Sequence[int]] = (),
    ) -> TeacherRequest:
        """Return the request that scores the tokens of a row.

        Args:
            ids: the row as the teacher reads it.
            start: the first token that is scored; at least 1.
            text: the same as text, for estimates of the cost.
            candidates: at each scored token the ids whose log-probabilities are requested, beside
                its own; without them those of the teacher's likeliest are.
        """
        signals = self.address.signals
        if not candidates:
            parts = ["scoring", signals.scoring, signals.top_logprobs, start, list(ids)]
            return TeacherRequest(answer_key(*parts), text, "", ids=tuple(ids), start=start)
        rows = tuple(
            tuple(row) if own in row else (*row, own)
            for row, own in zip(candidates, ids[start:], strict=True)
        )
        key = answer_key("scoring", "candidates", start, list(ids), rows)
        return TeacherRequest(key, text, "", ids=tuple(ids), start=start, candidates=rows)

    def body(self, model: str, request: TeacherRequest, decoding: Decoding) -> dict[str, Any]:
        """Return the JSON body of a request."""
        return self._service(request).body(model, request, self.address.signals.top_logprobs)

    def parse_answer(
        self,
        content: bytes,
        request: TeacherRequest,
        decoding: Decoding,
        share: float = 1.0,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Answer:
        """Return the scored tokens of a reply, as an answer without a text.

        Raises:
            RefusedError: they are not what was requested.
            UserError: the service does not score text at all.
        """
        assert request.ids is not None
        most = TokenLimits(len(request.ids), 1)
        reply = read_reply(content, most, self.price, share, headers)
        if reply.error:
            raise ReplyError(reply.error, 0.0, reply.sent)
        try:
            tokens = self._tokens(reply.fields, request)
        except NoSignalsError as error:
            raise RefusedError(str(error), reply.usage.cost, reply.sent) from None
        mean = sum(logprob for _, logprob, _ in tokens) / len(tokens)
        return Answer("", "stop", mean, reply.usage, tokens)

    def _tokens(
        self, reply: Mapping[str, Any], request: TeacherRequest
    ) -> tuple[ServiceToken, ...]:
        answered = reply.get("model")
        if isinstance(answered, str) and not same_model(self.address.model, answered):
            raise NoSignalsError(f"another model answered: {answered}")
        try:
            places = self._service(request).places(reply, request)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise self._not_scored(request) from None
        assert request.ids is not None
        wanted = request.ids[request.start :]
        if len(places) < len(wanted):
            raise NoSignalsError(f"{len(places)} tokens were scored of {len(wanted)}")
        # some versions leave the first token of the row out, which nothing predicts
        last = places[len(places) - len(wanted) :]
        k = self.address.signals.top_logprobs
        counts = [len(row) for row in request.candidates] or [k] * len(wanted)
        try:
            return tuple(
                _checked(place, token, count)
                for place, token, count in zip(last, wanted, counts, strict=True)
            )
        except (AttributeError, KeyError, TypeError, ValueError):
            raise NoSignalsError("a token's log-probabilities have another form") from None

    def _not_scored(self, request: TeacherRequest) -> UserError:
        service = self._service(request)
        return UserError(
            f"the service sent no log-probabilities of given text ({service.about})",
            where=f"teachers.*.scoring: {self.address.signals.scoring}",
            fix="set teachers.*.scoring to what the service is: vllm, sglang, or none",
        )


class ScoredPlace(NamedTuple):
    """What a service sent of one token of a row."""

    top: Any
    """(id, log-probability) of the likeliest tokens there; None where there are none."""
    token: Any = None
    """The token's own id, where the reply has it."""
    logprob: Any = None
    """Its own log-probability; None: it is among the likeliest."""


def _checked(place: ScoredPlace, token: int, k: int) -> ServiceToken:
    """Return one scored token.

    Raises:
        NoSignalsError: it is another token, or numbers are missing or impossible.
    """
    if place.token is not None and int(place.token) != token:
        raise NoSignalsError(f"token {place.token} was scored, token {token} was sent")
    if place.top is None:
        raise NoSignalsError("a token has no log-probabilities")
    top = {id_name(int(number)): round(float(logprob), _DIGITS) for number, logprob in place.top}
    logprob = top.get(id_name(token)) if place.logprob is None else place.logprob
    if logprob is None:
        raise NoSignalsError(f"token {token} was sent, and is not among those that were scored")
    scored = (id_name(token), round(float(logprob), _DIGITS), top)
    check_numbers(scored, k)
    return scored


class ScoringService:
    """How one kind of service is asked to score text. To add one: a class, and its name below."""

    about: str
    """The field of a reply that has the log-probabilities."""

    def path(self, url: str) -> str:
        """Return where requests are sent."""
        raise NotImplementedError

    def body(self, model: str, request: TeacherRequest, k: int) -> dict[str, Any]:
        """Return the JSON body of a request."""
        raise NotImplementedError

    def places(self, reply: Mapping[str, Any], request: TeacherRequest) -> list[ScoredPlace]:
        """Return what a reply has of each token, the last one at the end."""
        raise NotImplementedError


class VllmScoring(ScoringService):
    """`prompt_logprobs` of vLLM's completions."""

    about = "prompt_logprobs"

    def path(self, url: str) -> str:
        """Return where requests are sent."""
        return "/completions"

    def body(self, model: str, request: TeacherRequest, k: int) -> dict[str, Any]:
        """Return the JSON body of a request."""
        ids = list(request.ids or ())
        once = {"max_tokens": 1, "temperature": 0.0, "add_special_tokens": False}
        return {"model": model, "prompt": ids, "prompt_logprobs": k, **once}

    def places(self, reply: Mapping[str, Any], request: TeacherRequest) -> list[ScoredPlace]:
        """Return what a reply has of each token: a map from ids, the token's own among them."""
        choice = reply["choices"][0]
        listed = choice["prompt_logprobs"]
        ids = choice.get("prompt_token_ids") or [None] * len(listed)
        return [
            ScoredPlace(entries and [(n, e["logprob"]) for n, e in entries.items()], token)
            for entries, token in zip(listed, ids, strict=True)
        ]


class SglangScoring(ScoringService):
    """SGLang's own `/generate`."""

    about = "meta_info.input_top_logprobs"

    def path(self, url: str) -> str:
        """Return where requests are sent: beside /v1."""
        return url.rstrip("/").removesuffix("/v1") + "/generate"

    def body(self, model: str, request: TeacherRequest, k: int) -> dict[str, Any]:
        """Return the JSON body of a request."""
        return {
            "input_ids": list(request.ids or ()),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_logprob": True,
            # the log-probability of a token belongs to the place before it
            "logprob_start_len": request.start - 1,
            "top_logprobs_num": k,
        }

    def places(self, reply: Mapping[str, Any], request: TeacherRequest) -> list[ScoredPlace]:
        """Return what a reply has of each token: lists of [log-probability, id, text]."""
        meta = reply["meta_info"]
        own, top = meta["input_token_logprobs"], meta["input_top_logprobs"]
        return [
            ScoredPlace(listed and [(e[1], e[0]) for e in listed], token, logprob)
            for (logprob, token, *_), listed in zip(own, top, strict=True)
        ]


class VllmCandidates(ScoringService):
    """`prompt_logprob_token_ids` of vLLM's own `/inference/v1/generate`.

    The reply has a float32 array in the format of numpy as base64: a row a scored token, a column a
    candidate. vLLM serves it with `--enable-scale-out` and its second model runner.
    """

    about = "prompt_token_id_logprobs"

    def path(self, url: str) -> str:
        """Return where requests are sent: beside /v1."""
        return url.rstrip("/").removesuffix("/v1") + SCORES_CANDIDATES

    def body(self, model: str, request: TeacherRequest, k: int) -> dict[str, Any]:
        """Return the JSON body of a request."""
        sampling = {
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprob_token_ids": [list(row) for row in request.candidates],
            # row i scores the token behind this one
            "prompt_logprob_start": request.start - 1,
        }
        ids = list(request.ids or ())
        return {"model": model, "token_ids": ids, "sampling_params": sampling}

    def places(self, reply: Mapping[str, Any], request: TeacherRequest) -> list[ScoredPlace]:
        """Return what a reply has of each token: the columns of its row that are no padding."""
        data = base64.b64decode(reply["prompt_token_id_logprobs"], validate=True)
        scores = np.load(BytesIO(data), allow_pickle=False)
        if scores.ndim != 2 or len(scores) != len(request.candidates):
            raise NoSignalsError(
                f"scores of the shape {scores.shape} came for {len(request.candidates)} tokens"
            )
        pairs = zip(request.candidates, scores.tolist(), strict=True)
        return [ScoredPlace(list(zip(ids, row, strict=False))) for ids, row in pairs]


CANDIDATES = VllmCandidates()
SERVICES: Mapping[str, ScoringService] = {"vllm": VllmScoring(), "sglang": SglangScoring()}
