"""Content of a row: what a record of a source holds of prompt and answer."""

from itertools import dropwhile
from typing import Literal, NamedTuple

from cohobate.data.messages import Message, Prompt, ToolCall
from cohobate.data.reasoning import split
from cohobate.data.records import Row, row_id
from tasks.collect.source_records import UnusableRecordError


class RowContent(NamedTuple):
    """Prompt and answer of a record, in the fields of a `Row`."""

    prompt: Prompt
    answer: str | None = None
    """None: the record is a prompt without an answer. It can be empty where tools are called."""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    learn: Literal["all"] | None = None

    @classmethod
    def of_text(cls, prompt: Prompt, answer: str | None) -> "RowContent":
        """Return a prompt and its answer; reasoning between tags is kept apart.

        Raises:
            UnusableRecordError: the answer is reasoning alone.
        """
        if answer is None:
            return cls(prompt)
        text, reasoning = split(answer)
        if not reasoning:
            return cls(prompt, answer)
        if not text.strip():
            raise UnusableRecordError("the answer ends within its reasoning")
        return cls(prompt, text, reasoning)

    def row(self, group: str) -> Row:
        """Return the row."""
        return Row(
            id=row_id(self.prompt),
            group=group,
            origin="none" if self.answer is None else "ground_truth",
            **self._asdict(),
        )

    def without_reasoning(self) -> "RowContent":
        """Return the content without the reasoning of any turn."""
        prompt = self.prompt
        if not isinstance(prompt, str):
            prompt = tuple(turn.model_copy(update={"reasoning": None}) for turn in prompt)
        return self._replace(prompt=prompt, reasoning=None)

    def with_earlier_turns_learnt(self) -> "RowContent":
        """Return the content with `learn: all` where the prompt holds a turn to be learnt."""
        if isinstance(self.prompt, str):
            return self
        # what an assistant says before the user is never learnt
        turns = dropwhile(lambda turn: turn.role != "user", self.prompt)
        return self._replace(learn="all") if any(map(_learnable, turns)) else self


def _learnable(turn: Message) -> bool:
    return turn.role == "assistant" and turn.learn is not False
