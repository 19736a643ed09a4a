"""What a student is made of before it learns anything; one class a way.

To add a way: a class with `build` and `source`, and its name in `Student` at the bottom.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from tasks import checkpoints, sources
from tasks.checkpoints import Precision
from tasks.errors import UserError
from tasks.params import Section
from tasks.records import ADAPT
from tasks.teachers import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Pins(NamedTuple):
    """What preflight looked at: the sections of its models.json."""

    teachers: Mapping[str, Any]
    student: Mapping[str, Any]


class Uniform(Section):
    """So many layers, evenly spaced, the first and the last among them."""

    uniform: int = Field(ge=1)
    """Number of layers."""

    def of(self, depth: int) -> list[int]:
        """Return the positions of the layers in a model of `depth` layers."""
        if self.uniform == 1:
            return [depth - 1]
        return [round(n * (depth - 1) / (self.uniform - 1)) for n in range(self.uniform)]


class Start(Section):
    """What every way has in common."""

    teacher: str = "main"
    """Key of the teacher that lends its layers, its tokenizer, or its outline."""
    save_precision: Precision = "float32"
    """Number format of the weights on disk."""

    def lender(self, teachers: Mapping[str, Teacher]) -> Teacher:
        """Return the teacher by its key.

        Raises:
            UserError: no teacher has this key.
        """
        if self.teacher not in teachers:
            raise UserError(
                f"shape.teacher: {self.teacher!r} is none of the teachers {sorted(teachers)}",
                where="params.yaml, section shape",
            )
        return teachers[self.teacher]


class TeacherLayers(Start):
    """Some of a teacher's layers, with its embeddings and head."""

    type: Literal["teacher_layers"]
    of: Literal["adapted", "base"] = "adapted"
    """Of the teacher after `adapt`, or as it came."""
    layers: Annotated[tuple[int, ...], Field(min_length=1)] | Uniform
    """Positions of the layers, from 0 and in this order, or `{uniform: n}`."""

    def chosen(self, depth: int) -> list[int]:
        """Return the positions of the layers to take from a teacher of `depth` layers.

        Raises:
            UserError: the teacher has no such layer.
        """
        found = self.layers.of(depth) if isinstance(self.layers, Uniform) else list(self.layers)
        wrong = [n for n in found if not 0 <= n < depth]
        if wrong or len(found) > depth:
            raise UserError(
                f"the teacher has {depth} layers (0 to {depth - 1}): cannot take {wrong or found}",
                where="params.yaml, section shape.layers",
            )
        return found

    def source(self, teachers: Mapping[str, Teacher]) -> Teacher:
        """Return the model whose weights and tokenizer the student starts with."""
        return self.lender(teachers)

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the teacher and keep the chosen layers."""
        from tasks.shape.layers import keep_layers, layers_of

        folder, lender = ADAPT / self.teacher, self.lender(teachers)
        if self.of == "base":
            folder = lender.folder(pins.teachers[self.teacher])
        model, tokenizer = checkpoints.load(folder)
        keep_layers(model, self.chosen(len(layers_of(model))))
        return model, tokenizer


class Pretrained(Start):
    """A smaller model that someone has trained already."""

    type: Literal["pretrained"]
    model: str
    """A folder in Hugging Face format, or a hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    tokenizer: Literal["own", "teacher"] = "own"
    """teacher: take over its end-of-sequence token and chat template (of the same vocabulary)."""

    def source(self, teachers: Mapping[str, Teacher]) -> "Pretrained":
        """Return the model whose weights and tokenizer the student starts with."""
        return self

    def folder(self, pinned: Mapping[str, Any]) -> Path:
        """Return the folder of exactly the model that preflight looked at."""
        return sources.pinned(self.model, pinned)

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the model, with the tokenizer that was chosen."""
        model, tokenizer = checkpoints.load(self.folder(pins.student))
        if self.tokenizer == "teacher":
            lender = self.lender(teachers).folder(pins.teachers[self.teacher])
            tokenizer = checkpoints.load_tokenizer(lender)
        return model, tokenizer


class RandomWeights(Start):
    """The teacher's architecture, smaller, with weights that have learnt nothing."""

    type: Literal["random"]
    layers: int = Field(ge=1)
    """Number of layers."""
    overrides: dict[str, int] = Field(default_factory=dict)
    """Other sizes in the model's configuration, such as `{hidden_size: 288}`."""
    seed: int = 0
    """Of the weights."""

    def source(self, teachers: Mapping[str, Teacher]) -> Teacher:
        """Return the model whose tokenizer the student starts with."""
        return self.lender(teachers)

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Draw the weights."""
        from tasks.shape.layers import random_like

        folder = self.lender(teachers).folder(pins.teachers[self.teacher])
        model = random_like(folder, {**self.overrides, "num_hidden_layers": self.layers}, self.seed)
        return model, checkpoints.load_tokenizer(folder)


Student = Annotated[TeacherLayers | Pretrained | RandomWeights, Field(discriminator="type")]
