"""The rows that flow between stages, and the files that hold them.

Every stage writes below `data/<stage>` or `models/<stage>` (`/<item>` where it is one of a
foreach), and a `summary.json` of the few figures worth showing. Rows are JSON lines with sorted
keys: the same rows are the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from cohobate.data.messages import (
    ImagePrompt,
    Prompt,
    ToolCall,
    prompt_key,
    prompt_text,
    with_prefix,
)
from cohobate.data.tool_calls import with_calls
from cohobate.errors import UserError

# sources, collect
SOURCES = Path("data/sources")
COLLECT = Path("data/collect")
IMAGES = COLLECT / "images"
"""The pictures of rows, each once; there only where rows have pictures."""
LABELLED = COLLECT / "labelled.jsonl"
UNLABELLED = COLLECT / "unlabelled.jsonl"
DEV = COLLECT / "dev.jsonl"
TEST = COLLECT / "test.jsonl"
OOD = COLLECT / "ood.jsonl"
"""Rows from another distribution than the training rows; there only when asked for."""
# preflight, adapt, generate, filter, pair, order, capture, shape, train, evaluate, export
MODELS = Path("data/preflight/models.json")
TEACHERS = Path("data/preflight/teachers")
"""Below it, by teacher: what its tuning needs to know, which no other shape of student changes."""
PIN = "pin.json"
TOKENIZER = "tokenizer"  # of a teacher behind an endpoint that gives signals
ADAPT = Path("models/adapt")
ENDPOINT = "endpoint.json"  # below ADAPT / <teacher>: where a teacher is whose weights are not here
GENERATE = Path("data/generate")
ANSWER_SIGNALS = Path("data/signals")
"""Below it, by teacher: the signals that came with its answers; `generate` writes them."""
FILTER = Path("data/filter")
PREFERENCES = Path("data/preferences")
CURRICULUM = Path("data/curriculum")
CAPTURE = Path("data/capture")
DEV_CHECKS = Path("data/dev_checks")
INIT_STUDENT = Path("models/init_student")
TRAIN = Path("models/train")
VERDICT = Path("reports/challenge.json")
ASSIST = Path("models/assist")
EVALUATE = Path("data/evaluate")
EXPORT = Path("models/export")
EXPORTED_DATA = Path("data/export")
REPORTS = Path("reports")


class Row(BaseModel):
    """A prompt, and its answer where one is known.

    {"id": "9f8a…", "prompt": "Definition: a small rodent\\nCategory:", "answer": " animal",
     "group": "animal", "origin": "ground_truth"}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    """First 16 hex digits of a hash of the prompt with its pictures, or of raw text."""
    prompt: Prompt
    """Text to be continued as it stands, or a conversation for the model's chat template. Empty:
    the answer is raw text, of which every token is learnt."""
    teacher_prompt: Prompt | None = None
    """What the teacher reads in place of `prompt`: with a reference solution, a long instruction or
    a caption that the student does not see. None: it reads the prompt."""
    images: tuple[str, ...] | None = None
    """Pictures before the text of the prompt: names of files in data/collect/images. A student that
    sees reads them; a teacher of text reads `teacher_prompt` in place of prompt and pictures."""
    prefix: str | None = None
    """Text before the prompt that tells a student which target is wanted, such as `[label] `."""
    answer: str | None = None
    """What should follow the prompt, to the letter (a leading space belongs to it)."""
    reasoning: str | None = None
    """What stands before the answer, where it is kept apart: a student learns it."""
    tool_calls: tuple[ToolCall, ...] | None = None
    """Calls of tools with which the answer ends; the answer itself can be empty then."""
    learn: Literal["all"] | None = None
    """all: the assistant's earlier turns in the prompt are learnt too, not the answer alone."""
    cut: Literal[True] | None = None
    """True: raw text that goes on in another row, so that no end of sequence follows it."""
    task: str | None = None
    """Name of the source that the row comes from, where a round has several."""
    weight: float | None = None
    """Weight of the row's loss; 1 where not given."""
    group: str = ""
    """Class or topic of the row, for balance and per-group scores. Empty when unknown."""
    origin: Literal["ground_truth", "teacher", "student", "none"] = "none"
    """Who wrote the answer."""

    @property
    def is_raw_text(self) -> bool:
        """Whether the row is text without a prompt, learnt at every token."""
        return self.prompt == "" and self.answer is not None

    @property
    def source_text(self) -> str:
        """The text by which rows are compared: that of the prompt, or the raw text.

        Of a row with pictures, the caption that a teacher reads and the row's id: rows with one
        question about different pictures are not alike.
        """
        if self.images:
            return f"{prompt_text(self.teacher_prompt or '')}\n{self.id}".lstrip("\n")
        return self.answer or "" if self.is_raw_text else prompt_text(self.prompt)

    @property
    def full_prompt(self) -> Prompt:
        """The prompt behind its prefix: what a student reads."""
        prompt = with_prefix(self.prompt, self.prefix)
        if self.images and isinstance(prompt, str):
            return ImagePrompt(prompt, self.images)
        return prompt

    @property
    def prompt_of_teacher(self) -> Prompt:
        """The prompt that the teacher reads, without prefix.

        Raises:
            UserError: the row has pictures, and no caption in their place.
        """
        return self.for_teacher().prompt

    def for_teacher(self) -> Self:
        """Return the row as the teacher reads it: its prompt in place of the student's.

        Raises:
            UserError: the row has pictures, and no caption in their place.
        """
        if self.teacher_prompt is None:
            if self.images:
                raise UserError(
                    "the row has pictures, which a teacher of text does not see, and no "
                    "teacher_prompt in their place",
                    where=f"row {self.id}",
                    fix='collect.teacher_prompt: {text: "a template with the caption"}, or a '
                    "column teacher_prompt",
                )
            return self
        own = {"prompt": self.teacher_prompt, "teacher_prompt": None, "images": None}
        return self.model_copy(update=own)

    @property
    def full_answer(self) -> str:
        """The answer with its calls of tools as text, and without its reasoning: what verifiers,
        metrics, filters and judges read."""
        return with_calls(self.answer or "", self.tool_calls)

    def prefixed(self, prefix: str | None) -> Self:
        """Return the row with another prefix."""
        return self if prefix == self.prefix else self.model_copy(update={"prefix": prefix})


class Response(Row):
    """A teacher's answer to a prompt: what `generate` writes and `filter` reads."""

    teacher: str
    """Key of the teacher in params.yaml."""
    sample: int = 0
    """Number of the sample where several were drawn for one prompt."""
    finish: Literal["stop", "length"]
    """Whether the teacher ended the answer itself."""
    logprob: float | None = None
    """Mean log-probability (nats a token) the teacher gave its own answer."""
    target: str | None = None
    """Name of an auxiliary target, such as `rationale`; none where the row has the prompt's own
    answer. Auxiliary targets stand behind their answer, and have its id, teacher and sample."""


class Dropped(Response):
    """A response that a filter refused."""

    filter: str
    reason: str
    score: float | None = None
    """The figure that decided, where the filter computes one."""


class TrainingRow(Response):
    """A row in the order in which the student meets it."""

    difficulty: float
    stage: int
    """Stage of the curriculum, from 0."""


class Pair(BaseModel):
    """Two answers to one prompt, one better than the other: what preference training reads.

    {"id": "9f8a…", "prompt": "Definition: …", "chosen": " animal", "rejected": " plant",
     "chosen_origin": "teacher", "rejected_origin": "student", "margin": 1.0, "group": "animal"}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    """`id` of the row."""
    prompt: Prompt
    prefix: str | None = None
    """As in `Row`."""
    chosen: str
    chosen_reasoning: str | None = None
    chosen_tool_calls: tuple[ToolCall, ...] | None = None
    rejected: str
    rejected_reasoning: str | None = None
    rejected_tool_calls: tuple[ToolCall, ...] | None = None
    chosen_origin: Literal["ground_truth", "teacher", "student"]
    rejected_origin: Literal["ground_truth", "teacher", "student"]
    margin: float
    """Score of the chosen answer minus that of the rejected one."""
    group: str = ""
    task: str | None = None
    weight: float | None = None
    """Both as in `Row`."""


R = TypeVar("R", bound=BaseModel)


def row_id(prompt: Prompt, answer: str | None = None, images: Sequence[str] = ()) -> str:
    """Return the id of a row: 16 hex digits of a BLAKE2 hash.

    Args:
        prompt: what is hashed.
        answer: is hashed where the prompt is empty: the row is raw text then.
        images: names of the pictures before the prompt, which are hashes of their content.
    """
    text = prompt if isinstance(prompt, str) else json.dumps(prompt_key(prompt))
    text = text or f"\0{answer or ''}"  # the NUL: a prompt of the same text has another id
    text = "\0".join([text, *images])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def read_rows(path: Path, kind: type[R]) -> Iterator[R]:
    """Yield the rows of a JSON-lines file that a stage wrote."""
    with path.open("rb") as lines:
        for line in lines:
            yield kind.model_validate_json(line)


def row_kind(path: Path) -> type[Any]:
    """Return which kind of rows a file holds: pairs, training rows, responses or plain rows."""
    with path.open("rb") as lines:
        first = lines.readline()
    # the most special kind first: a training row has a teacher too
    kinds = {b'"chosen":': Pair, b'"stage":': TrainingRow, b'"teacher":': Response}
    return next((kind for mark, kind in kinds.items() if mark in first), Row)


def write_rows(path: Path, rows: Iterable[BaseModel]) -> int:
    """Write rows as JSON lines with sorted keys, through a temporary file; return their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(_sorted_json(row.model_dump(mode="json", exclude_none=True)) + "\n")
            count += 1
    partial.replace(path)
    return count


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and for `dvc metrics`: indented, sorted, through a temporary file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    partial.replace(path)


def _sorted_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
