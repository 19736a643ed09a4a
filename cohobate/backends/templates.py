"""What the teacher is asked about a prompt, and which rows its replies become.

A template is a YAML file in `cohobate/backends/templates`. Its steps are asked one after the other;
a reply is known to later steps and to the rows by the name of its step, and by the named groups of
the step's pattern; what the teacher reasoned before it as `reasoning`, or `<step>_reasoning`. All
texts are Jinja, with `prompt`, what was said so far, `pick` (one of a list, drawn for each prompt
and sample) and `seeds` (so many prompts of others):

    steps:
      - messages: [{role: user, content: "{{ prompt }} Think first, then write Answer: ..."}]
        pattern: "(?s)(?P<rationale>.*)Answer:(?P<verdict>.*)"
    rows:
      - {prefix: "[label] ", answer: " {{ verdict | trim }}"}
      - {prefix: "[rationale] ", answer: " {{ rationale | trim }}", target: rationale}

What a template asks is part of an answer's key; how it makes rows is not: that can be fixed
without a new answer.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator
from ruamel.yaml import YAML

from cohobate.data.reasoning import inline
from cohobate.data.records import Message, Response, Row, prompt_text, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Answer
from cohobate.params import Section, nearest, validated

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

FOLDER = Path(__file__).parent / "templates"
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True)
class Conversation:
    """What was said about one row so far."""

    row: Row
    sample: int
    said: dict[str, str] = field(default_factory=dict)
    """Replies and their parts, by name."""
    asked: Prompt = ""
    """The prompt of the first step."""
    answer: Answer | None = None
    """The last reply."""

    def render(self, text: str, pool: Sequence[str]) -> str:
        """Return a Jinja text with what is known put in.

        Raises:
            UserError: the text names something that is not known, or is no Jinja.
        """
        from jinja2 import TemplateError

        rng = random.Random(f"{self.row.id}/{self.sample}")
        known = {**self.said, "prompt": prompt_text(self.row.prompt), "pick": rng.choice}
        known["seeds"] = lambda count: rng.sample(pool, min(count, len(pool)))
        try:
            return str(_jinja().from_string(text).render(known))
        except TemplateError as error:
            raise UserError(f"{error.message}", where=f"template: {text[:60]!r}") from None


class Step(Section):
    """One question to the teacher."""

    name: str = Field("answer", pattern="^[a-z_]+$")
    """By which the reply is known."""
    messages: tuple[Message | Literal["turns"], ...] = ("turns",)
    """The conversation; `turns` stands for the row's own prompt."""
    text: str | None = None
    """Text to be continued, in place of a conversation."""
    pattern: str | None = None
    """Regular expression that takes the reply apart; its named groups are known by their names."""
    many: bool = False
    """Whether each match goes on as a row of its own, or the first one alone."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern

    def prompt_for(self, conversation: Conversation, pool: Sequence[str]) -> Prompt:
        """Return the prompt of this step."""
        if self.text is not None:
            return conversation.render(self.text, pool)
        own = conversation.row.prompt
        if self.messages == ("turns",):
            return own
        turns: list[Message] = []
        for message in self.messages:
            if isinstance(message, Message):
                content = conversation.render(message.content, pool)
                turns.append(message.model_copy(update={"content": content}))
            else:
                turns += [Message(role="user", content=own)] if isinstance(own, str) else own
        return tuple(_alternating(turns))

    def on_reply(
        self, conversation: Conversation, asked: Prompt, answer: Answer
    ) -> list[Conversation]:
        """Return how it goes on with this reply: nowhere, where it has not the form asked for."""
        after = replace(conversation, answer=answer, asked=conversation.asked or asked)
        thought = answer.reasoning or ""
        known = {**conversation.said, "reasoning": thought, f"{self.name}_reasoning": thought}
        known[self.name] = answer.text
        if self.pattern is None:
            return [replace(after, said=known)]
        matches = list(re.finditer(self.pattern, answer.text))[: None if self.many else 1]
        parts = [{k: v or "" for k, v in match.groupdict().items()} for match in matches]
        return [replace(after, said=known | part) for part in parts]


class RowText(Section):
    """A row that the replies become."""

    prompt: str | None = None
    """Another question that the student is asked; not given: the row's own prompt."""
    prefix: str | None = None
    """Text before the prompt that tells the student which target is wanted."""
    as_asked: bool = False
    """Whether the student is asked as the teacher was in the first step."""
    answer: str = "{{ answer }}"
    """What it should answer."""
    target: str | None = Field(None, pattern="^[a-z_]+$")
    """Name of an auxiliary target, such as a rationale; not given: this is the prompt's answer."""

    def response(
        self, conversation: Conversation, teacher: str, reasoning: Literal["keep", "drop", "inline"]
    ) -> Response:
        """Return the row, with the last reply's reasoning where it is kept, or in the answer.

        An auxiliary target is what the template makes of the reply: no reasoning is added to it.
        """
        assert conversation.answer is not None
        prompt: Prompt = conversation.asked if self.as_asked else conversation.row.prompt
        if self.prompt is not None:
            prompt = conversation.render(self.prompt, ())
        logprob = conversation.answer.logprob
        text = conversation.render(self.answer, ())
        thought = "" if self.target else conversation.answer.reasoning or ""
        return Response(
            id=conversation.row.id if self.prompt is None else row_id(prompt),
            prompt=prompt,
            prefix=self.prefix,
            answer=inline(text, thought) if reasoning == "inline" else text,
            reasoning=(thought or None) if reasoning == "keep" else None,
            group=conversation.row.group,
            origin="teacher",
            teacher=teacher,
            sample=conversation.sample,
            finish=conversation.answer.finish,
            logprob=None if logprob is None else round(logprob, 6),
            target=self.target,
        )


class Template(Section):
    """A way to ask."""

    about: str
    """What it is for, and who described it."""
    roots: tuple[str, ...] = ()
    """Asked about in place of the unlabelled prompts, where data are to be made from nothing."""
    steps: tuple[Step, ...] = Field((Step(),), min_length=1)
    """The questions, each asked once the one before is answered."""
    rows: tuple[RowText, ...] = Field((RowText(),), min_length=1)
    """What the student learns from: the prompt's answer first, then its auxiliary targets."""

    @model_validator(mode="after")
    def _names_differ(self) -> "Template":
        names = [step.name for step in self.steps]
        if len(set(names)) < len(names):
            raise ValueError("two steps have the same name")
        return self

    @model_validator(mode="after")
    def _the_answer_comes_first(self) -> "Template":
        targets = [row.target for row in self.rows]
        if targets[0] is not None or len(set(targets)) < len(targets):
            raise ValueError(
                "rows: the first is the prompt's answer and has no target; each further one has a "
                "target of its own name"
            )
        return self


def template_of(name: str) -> Template:
    """Read a template by its name.

    Raises:
        UserError: there is none, or it says something that templates do not know.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(
            f"no template is called {name!r}{nearest(name, known)}",
            where="cohobate/backends/templates",
        )
    value: Any = YAML(typ="safe", pure=True).load((FOLDER / f"{name}.yaml").read_text())
    template: Template = validated(Template, value, f"tasks/generate/templates/{name}.yaml")
    return template


def _alternating(turns: list[Message]) -> Iterator[Message]:
    """Yield the turns, those of one role in a row as one: not every chat template takes two."""
    for role, group in groupby(turns, key=lambda turn: turn.role):
        yield Message(role=role, content="\n\n".join(turn.content for turn in group))


@cache
def _jinja() -> "SandboxedEnvironment":
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
