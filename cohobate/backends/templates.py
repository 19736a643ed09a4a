"""Templates: the requests that the teacher gets for a prompt, and the rows made of its replies.

A template is a YAML file in `cohobate/backends/templates`. Its steps run one after the other. Later
steps and the rows can use a reply by the name of its step, its parts by the named groups of the
step's pattern, and the reasoning before it as `reasoning` or `<step>_reasoning`. All texts are
Jinja, with `prompt`, the replies so far, `pick` (one item of a list, drawn for each prompt and
sample), `seeds` (prompts of other rows) and, with `generate.pool`, `made` (tasks of earlier waves).
In the steps the prompt of a row is its `teacher_prompt`, where it has one:

    steps:
      - messages: [{role: user, content: "{{ prompt }} Think first, then write Answer: ..."}]
        pattern: "(?s)(?P<rationale>.*)Answer:(?P<verdict>.*)"
    rows:
      - {prefix: "[label] ", answer: " {{ verdict | trim }}"}
      - {prefix: "[rationale] ", answer: " {{ rationale | trim }}", target: rationale}

A row can be a conversation with the teacher (`messages`), whose earlier replies are learnt with the
last one (`learn: all`). What `pick` and `seeds` draw is the same in all texts of a row.

The requests of a template are part of an answer's key; its rows are not, and can be changed without
new answers.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from heapq import nsmallest
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator
from ruamel.yaml import YAML

from cohobate.data.messages import Message, Prompt, prompt_text
from cohobate.data.records import Response, Row, row_id
from cohobate.errors import UserError
from cohobate.generation.requests import Answer
from cohobate.params import Section, nearest, validated

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

FOLDER = Path(__file__).parent / "templates"
Turns = tuple[Message | Literal["turns"], ...]
"""Messages of Jinja texts; `turns` stands for the row's own prompt."""


@dataclass(frozen=True)
class Conversation:
    """The replies of a teacher about one row so far."""

    row: Row
    sample: int
    replies: dict[str, str] = field(default_factory=dict)
    """Replies and their parts, by name."""
    first_prompt: Prompt = ""
    """The prompt of the first step."""
    answer: Answer | None = None
    """The last reply."""

    def render(
        self,
        text: str,
        pool: Sequence[str],
        prompt: Prompt | None = None,
        made: Sequence[str] = (),
    ) -> str:
        """Render a Jinja text with a prompt and the replies so far.

        Args:
            text: the text.
            pool: prompts of other rows, for `seeds`.
            prompt: the text's `prompt`; the row's own when not given.
            made: tasks that the teacher made up before, for `made`.

        Raises:
            UserError: the text uses an unknown name, or is not Jinja.
        """
        from jinja2 import TemplateError

        # drawn by row and sample, anew for each text: the same texts in every run, so the ledger's
        # keys match, and in requests and rows
        drawn_by = f"{self.row.id}/{self.sample}"
        rng = random.Random(drawn_by)
        own = self.row.prompt if prompt is None else prompt
        known = {**self.replies, "prompt": prompt_text(own), "pick": rng.choice}
        known["seeds"] = lambda count: rng.sample(pool, min(count, len(pool)))
        # those of the lowest hashes: where a failed request of an earlier wave is answered in the
        # next run, the tasks that it adds change few of these draws
        known["made"] = lambda count: nsmallest(
            count, made, key=lambda task: row_id(f"{drawn_by}/{task}")
        )
        try:
            return str(_jinja().from_string(text).render(known))
        except TemplateError as error:
            raise UserError(
                f"{error.message}",
                where=f"template: {text[:60]!r}",
                fix="correct the template in cohobate/backends/templates",
            ) from None

    def render_turns(
        self, messages: Turns, pool: Sequence[str], prompt: Prompt, made: Sequence[str] = ()
    ) -> tuple[Message, ...]:
        """Render messages, with a row's prompt in the place of `turns`, as `render` does."""
        turns: list[Message] = []
        for message in messages:
            if isinstance(message, Message):
                content = self.render(message.content, pool, prompt, made)
                turns.append(message.model_copy(update={"content": content}))
            else:
                turns += (
                    [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
                )
        return _with_tools(tuple(_alternating(turns)), prompt)


class Step(Section):
    """One request to the teacher."""

    name: str = Field("answer", pattern="^[a-z_]+$")
    """Name of its reply."""
    messages: Turns = ("turns",)
    """The conversation; `turns` stands for the row's own prompt."""
    text: str | None = None
    """Text to be continued, in place of a conversation."""
    pattern: str | None = None
    """Regular expression that the reply must match; its named groups are parts of the reply."""
    many: bool = False
    """Whether each match becomes a row of its own, or the first one alone."""
    new_task: str | None = Field(None, pattern="^[a-z_]+$")
    """Part of the reply that is a task made up by the teacher: with `generate.pool` the
    conversation goes on only where it is novel."""

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _the_new_task_is_a_part(self) -> "Step":
        if self.new_task and f"(?P<{self.new_task}>" not in (self.pattern or ""):
            raise ValueError(f"pattern has no group {self.new_task!r}, which new_task names")
        return self

    def prompt_for(
        self, conversation: Conversation, pool: Sequence[str], made: Sequence[str] = ()
    ) -> Prompt:
        """Return the prompt of this step, made of what the teacher reads of the row."""
        own = conversation.row.prompt_of_teacher
        if self.text is not None:
            return conversation.render(self.text, pool, own, made)
        # unchanged, text as text: the backend decides how it is sent
        if self.messages == ("turns",):
            return own
        return conversation.render_turns(self.messages, pool, own, made)

    def on_reply(
        self, conversation: Conversation, prompt: Prompt, answer: Answer
    ) -> list[Conversation]:
        """Return the conversations after this reply, one for each match of `pattern`."""
        after = replace(
            conversation, answer=answer, first_prompt=conversation.first_prompt or prompt
        )
        thought = answer.reasoning or ""
        known = {**conversation.replies, "reasoning": thought, f"{self.name}_reasoning": thought}
        known[self.name] = answer.text
        if self.pattern is None:
            return [replace(after, replies=known)]
        matches = list(re.finditer(self.pattern, answer.text))[: None if self.many else 1]
        # a group that did not take part in the match is an empty text
        parts = [{k: v or "" for k, v in match.groupdict().items()} for match in matches]
        return [replace(after, replies=known | part) for part in parts]


class RowText(Section):
    """A row made of the replies."""

    prompt: str | None = None
    """Prompt of the student; not given: the row's own prompt. Empty: the answer is raw text, learnt
    at every token."""
    messages: Turns | None = None
    """The same as a conversation that ends with a user's turn, with the replies so far as turns of
    the assistant."""
    learn: Literal["all"] | None = None
    """all: the assistant's turns in `messages` are learnt too, not the answer alone."""
    prefix: str | None = None
    """Text before the prompt that tells the student which target to generate."""
    as_asked: bool = False
    """Whether the student gets the prompt that the teacher got in the first step."""
    answer: str = "{{ answer }}"
    """Answer that the student learns."""
    target: str | None = Field(None, pattern="^[a-z_]+$")
    """Name of an auxiliary target, such as a rationale; not given: this row is the answer."""

    @model_validator(mode="after")
    def _one_prompt(self) -> "RowText":
        if self.prompt is not None and self.messages is not None:
            raise ValueError("a row has either a prompt or messages")
        if self.learn and self.messages is None:
            raise ValueError("learn: all is of the assistant's turns in messages")
        return self

    def response(
        self,
        conversation: Conversation,
        teacher: str,
        reasoning: Literal["keep", "drop"],
        pool: Sequence[str] = (),
    ) -> Response:
        """Return the row, with the last reply's calls of tools, and its reasoning if it is kept.

        An auxiliary target is what the template makes of the reply: neither is added to it.
        """
        assert conversation.answer is not None
        row, logprob = conversation.row, conversation.answer.logprob
        answer = conversation.render(self.answer, pool)
        made = self._made_prompt(conversation, pool)
        # what belongs to the row's own prompt goes with it alone
        own = row if made is None else Row(id=row_id(made, answer), prompt=made, learn=self.learn)
        prompt: Prompt = conversation.first_prompt if self.as_asked and made is None else own.prompt
        kept = reasoning == "keep" and not self.target
        return Response(
            id=own.id,
            prompt=prompt,
            teacher_prompt=None if self.as_asked else own.teacher_prompt,
            images=None if self.as_asked else own.images,
            prefix=self.prefix,
            answer=answer,
            reasoning=(conversation.answer.reasoning or None) if kept else None,
            # calls belong to a prompt that offers the tools
            tool_calls=None if self.target or made is not None else conversation.answer.tool_calls,
            # earlier turns are learnt with the answer to the conversation that they belong to
            learn=None if self.target else own.learn,
            task=row.task,
            weight=row.weight,
            group=row.group,
            origin="teacher",
            teacher=teacher,
            sample=conversation.sample,
            finish=conversation.answer.finish,
            logprob=None if logprob is None else round(logprob, 6),
            target=self.target,
        )

    def _made_prompt(self, conversation: Conversation, pool: Sequence[str]) -> Prompt | None:
        """Return the prompt that the template makes; None where the row keeps its own."""
        if self.messages is not None:
            return conversation.render_turns(self.messages, pool, conversation.row.prompt)
        return None if self.prompt is None else conversation.render(self.prompt, pool)


class Template(Section):
    """A template: steps, and the rows made of their replies."""

    about: str
    """What it is for, and who described it."""
    roots: tuple[str, ...] = ()
    """Prompts of its own, used in place of the collected ones to make data from nothing."""
    steps: tuple[Step, ...] = Field((Step(),), min_length=1)
    """The requests, each sent after the reply to the one before."""
    rows: tuple[RowText, ...] = Field((RowText(),), min_length=1)
    """Rows that the student learns from: the answer first, then the auxiliary targets."""

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
        UserError: there is none, or it has an unknown key.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(
            f"no template is called {name!r}{nearest(name, known)}",
            where="cohobate/backends/templates",
            fix="cohobate run --set generate.template=answer",
        )
    value: Any = YAML(typ="safe", pure=True).load((FOLDER / f"{name}.yaml").read_text())
    template: Template = validated(Template, value, f"cohobate/backends/templates/{name}.yaml")
    return template


def _alternating(turns: list[Message]) -> Iterator[Message]:
    """Yield the turns; consecutive turns of one role become one, as chat templates require.

    Turns with more than a text (calls of tools, their results, reasoning) stay as they are.
    """
    for _, group in groupby(turns, key=lambda turn: (turn.role, _is_plain(turn))):
        same = [turn.model_copy(update={"tools": None}) for turn in group]
        if not _is_plain(same[0]):
            yield from same
            continue
        yield same[0].model_copy(update={"content": "\n\n".join(turn.content for turn in same)})


def _is_plain(turn: Message) -> bool:
    return turn.role != "tool" and turn.content_key().keys() <= {"role", "content", "tools"}


def _with_tools(turns: tuple[Message, ...], own: Prompt) -> tuple[Message, ...]:
    """Return turns with the tools of a row's own prompt, which belong onto the first turn."""
    tools = None if isinstance(own, str) or not own else own[0].tools
    if tools is None or not turns:
        return turns
    return (turns[0].model_copy(update={"tools": tools}), *turns[1:])


@cache
def _jinja() -> "SandboxedEnvironment":
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
