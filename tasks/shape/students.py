"""What a student is made of before it learns anything; one class a way.

To add a way: a class with `preview` (what it will be, before any work) and `build`, and its name in
`Student` at the bottom.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tasks import checkpoints, sources
from tasks.checkpoints import Precision
from tasks.depth import Layers, chosen
from tasks.errors import UserError
from tasks.outlines import Outline, outline_of
from tasks.params import Section
from tasks.teachers import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Pins(NamedTuple):
    """What preflight looked at: the sections of its models.json."""

    teachers: Mapping[str, Any]
    student: Mapping[str, Any]


class Start(Section):
    """What every way has in common."""

    teacher: str = "main"
    """Key of the teacher that lends its layers, its tokenizer, or its outline."""
    of: Literal["data/preflight"] = "data/preflight"
    """What it is made of, as DVC watches it: the models as they came."""
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
    of: str = Field("data/preflight", pattern="^(data/preflight|models/adapt/[a-z0-9-]{1,64})$")  # type: ignore[assignment]
    """`data/preflight`: the teacher as it came; `models/adapt/<teacher>`: as it was tuned."""
    layers: Layers
    """Positions of the layers, from 0 and in this order, or `{uniform: n}`."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "TeacherLayers":
        if self.of not in ("data/preflight", f"models/adapt/{self.teacher}"):
            raise ValueError(f"`of` names another teacher than `teacher: {self.teacher}`")
        return self

    def preview(self, lender: Outline) -> tuple[Outline, dict[str, Any]]:
        """Return the model that the student speaks like, and what the student will be."""
        kept = chosen(self.layers, lender.depth, "section shape.layers")
        sizes = {"layers": len(kept), "parameters": lender.parameters(kept)}
        return lender, lender.facts() | sizes | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the teacher and keep the chosen layers."""
        from tasks.shape.layers import keep_layers, layers_of

        folder = Path(self.of)
        if self.of == "data/preflight":
            folder = self.lender(teachers).folder(pins.teachers[self.teacher])
        model, tokenizer = checkpoints.load(folder)
        depth = len(layers_of(model))
        keep_layers(model, chosen(self.layers, depth, "section shape.layers"))
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

    def preview(self, lender: Outline) -> tuple[Outline, dict[str, Any]]:
        """Return the model as it will speak, and what the student will be."""
        found = outline_of(sources.resolve(self.model, self.revision))
        student = found.speaking_like(lender) if self.tokenizer == "teacher" else found
        origin = sources.origin(self.model, found.folder)
        return student, student.facts() | origin | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the model, with the tokenizer that was chosen."""
        model, tokenizer = checkpoints.load(sources.pinned(self.model, pins.student))
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

    @property
    def sizes(self) -> dict[str, int]:
        """What differs from the teacher's configuration."""
        return {**self.overrides, "num_hidden_layers": self.layers}

    def preview(self, lender: Outline) -> tuple[Outline, dict[str, Any]]:
        """Return the model that the student speaks like, and what the student will be."""
        from tasks.shape.layers import random_like

        model = random_like(lender.folder, self.sizes, self.seed, device="meta")
        sizes = {"layers": self.layers, "parameters": model.num_parameters()}
        return lender, lender.facts() | sizes | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: Pins
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Draw the weights."""
        from tasks.shape.layers import random_like

        folder = self.lender(teachers).folder(pins.teachers[self.teacher])
        model = random_like(folder, self.sizes, self.seed)
        return model, checkpoints.load_tokenizer(folder)


Student = Annotated[TeacherLayers | Pretrained | RandomWeights, Field(discriminator="type")]
