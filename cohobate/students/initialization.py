"""Initial students, one class for each kind: cut from a teacher, pretrained, random, a classifier,
a masked model, an embedder, one that sees.

To add a kind: a class with `preview` (its sizes, before any work) and `build`, and its name in
`StudentInit` at the bottom.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.models import checkpoints, hub
from cohobate.models.chat_templates import PLAIN, TemplateSettings
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
from cohobate.students.classifiers import Classifier
from cohobate.students.embedders import Embedder, StaticEmbedder
from cohobate.students.masked import Masked
from cohobate.students.teacher_layers import TeacherLayers
from cohobate.students.vision_tower import VisionTower
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Pretrained(Initialization):
    """A smaller pretrained model."""

    type: Literal["pretrained"]
    model: str
    """A folder in Hugging Face format, or a hub id."""
    revision: str = ""
    """Branch, tag or commit on the hub. Preflight pins the commit that it stands for."""
    tokenizer: Literal["own", "teacher"] = "own"
    """teacher: take over its end-of-sequence token and chat template (of the same vocabulary)."""
    template: TemplateSettings = PLAIN
    """Settings of its own chat template. With `tokenizer: teacher` the teacher's apply."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's checkpoint is needed."""
        return self.tokenizer == "teacher"

    def preview_tokenizer(self, teachers: Mapping[str, Teacher]) -> "PreTrainedTokenizerBase":
        """Return the tokenizer that the student will have, before its vocabulary is trimmed."""
        if self.needs_teacher:
            return super().preview_tokenizer(teachers)
        tokenizer = checkpoints.load_tokenizer(hub.resolve(self.model, self.revision))
        self.template.write_into(tokenizer)
        return tokenizer

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the model with its tokenizer and template, and the student's sizes."""
        info = read_model_info(hub.resolve(self.model, self.revision), student=True)
        for note in self.template.check(
            "the student", info.template, "params.yaml, init_student.template"
        ):
            say(note)
        info = info.with_template(self.template)
        student = (
            info.with_tokenizer_of(teacher_info) if teacher_info and self.needs_teacher else info
        )
        origin = hub.source_of(self.model, info.folder)
        return student, student.to_json() | origin | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the model, with the tokenizer that was chosen."""
        model, tokenizer = checkpoints.load(hub.resolve_pinned(self.model, pins.student))
        if self.needs_teacher:
            folder = self.teacher_of(teachers).folder(pins.teachers[self.teacher])
            tokenizer = self.teacher_of(teachers).load_tokenizer(folder)
        else:
            self.template.write_into(tokenizer)
        return model, tokenizer


class RandomWeights(Initialization):
    """A smaller model of the teacher's architecture, with random weights."""

    type: Literal["random"]
    layers: int = Field(ge=1)
    """Number of layers."""
    overrides: dict[str, int] = Field(default_factory=dict)
    """Other sizes in the model's configuration, such as `{hidden_size: 288}`."""
    seed: int = 0
    """Of the weights."""

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that differ from the teacher's configuration."""
        return {**self.overrides, "num_hidden_layers": self.layers}

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the model whose tokenizer and template the student has, and its own sizes."""
        from cohobate.students.random_weights import random_model

        assert teacher_info is not None  # `teacher_of` has refused a teacher without weights
        model = random_model(teacher_info.folder, self.sizes, self.seed, device="meta")
        sizes = {"layers": self.layers, "parameters": model.num_parameters()}
        return teacher_info, teacher_info.to_json() | sizes | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Return a model with random weights, and the teacher's tokenizer."""
        from cohobate.students.random_weights import random_model

        folder = self.teacher_of(teachers).folder(pins.teachers[self.teacher])
        model = random_model(folder, self.sizes, self.seed)
        return model, self.teacher_of(teachers).load_tokenizer(folder)


class Seeing(TeacherLayers):
    """Some of a teacher's layers behind a new vision tower: a student that sees.

    It is LLaVA's form (transformers' AutoModelForImageTextToText) with small sizes; vision tower
    and projector have random weights. It reads the pictures of a row before its text.
    """

    type: Literal["seeing"]  # type: ignore[assignment]
    vision: VisionTower = VisionTower()
    """Sizes of the vision tower."""
    image_token: str = ""
    """Token of the tokenizer that stands for a part of a picture, and that no text has; a special
    token without another use when not given."""
    seed: int = 0
    """Of the random weights."""

    @model_validator(mode="after")
    def _whole_vocabulary(self) -> "Seeing":
        if self.vocabulary != "whole":
            raise ValueError("the vocabulary of a student that sees stays: vocabulary: whole")
        return self

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the model whose tokenizer and template the student has, and its own sizes."""
        from cohobate.students.seeing import choose_image_token, vision_parameters

        info, record = super().preview(teacher_info)
        choose_image_token(info.tokenizer, self.image_token)
        record["parameters"] += vision_parameters(self.vision, int(info.config["hidden_size"]))
        return info, record

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Cut the teacher, and put a vision tower and a projector before it."""
        from cohobate.students.seeing import choose_image_token, with_vision

        text, tokenizer = super().build(teachers, pins, task)
        token = choose_image_token(tokenizer, self.image_token)
        return with_vision(text, tokenizer, self.vision, token, self.seed), tokenizer


StudentInit = Annotated[
    TeacherLayers
    | Pretrained
    | RandomWeights
    | Classifier
    | Masked
    | Embedder
    | StaticEmbedder
    | Seeing,
    Field(discriminator="type"),
]
