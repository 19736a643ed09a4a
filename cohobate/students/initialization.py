"""Initial students, one class for each kind: cut from a teacher, pretrained, random, a classifier,
a masked model, an embedder, one that sees.

To add a kind: a class with `preview` (its sizes, before any work) and `build`, and its name in
`StudentInit` at the bottom.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from cohobate.models import checkpoints, hub
from cohobate.models.chat_templates import PLAIN, TemplateSettings
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo, read_model_info
from cohobate.params import Section
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
from cohobate.students.classifiers import Classifier
from cohobate.students.embedders import Embedder, StaticEmbedder
from cohobate.students.masked import Masked
from cohobate.students.vision_tower import VisionTower
from cohobate.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ImportantLayers(Section):
    """The layers of highest importance on calibration rows."""

    important: int = Field(ge=1)
    """Number of layers."""


class Width(Section):
    """Fewer heads and MLP neurons in every layer: those of highest importance."""

    groups: int = Field(ge=1)
    """Number of groups of heads that share keys and values; each is kept or dropped whole."""
    neurons: int = Field(ge=1)
    """Neurons of the MLP (`intermediate_size`)."""


class TeacherLayers(Initialization):
    """Some of a teacher's layers, with its embeddings and head."""

    type: Literal["teacher_layers"]
    of: str = Field("data/preflight", pattern="^(data/preflight|models/adapt/[a-z0-9-]{1,64})$")  # type: ignore[assignment]
    """`data/preflight`: the teacher as it came; `models/adapt/<teacher>`: as it was tuned."""
    layers: Layers | ImportantLayers
    """Positions of the layers, from 0 and in this order; `{uniform: n}`; or `{important: n}`."""
    width: Width | None = None
    """Numbers of heads and neurons that each layer keeps; all when not given."""
    calibration_rows: int = Field(256, ge=1)
    """Number of `rows` on which importance is measured."""

    @model_validator(mode="after")
    def _one_teacher(self) -> "TeacherLayers":
        if self.of not in ("data/preflight", f"models/adapt/{self.teacher}"):
            raise ValueError(f"`of` names another teacher than `teacher: {self.teacher}`")
        return self

    @property
    def needs_rows(self) -> bool:
        """Whether the student depends on rows."""
        return super().needs_rows or self._calibrated

    @property
    def _calibrated(self) -> bool:
        return isinstance(self.layers, ImportantLayers) or self.width is not None

    def kept_layers(self, depth: int, scores: Sequence[float] = ()) -> list[int]:
        """Return the positions of the layers to take from a teacher of `depth` layers.

        Args:
            depth: number of the teacher's layers.
            scores: importance of each layer; without them the first layers are returned.

        Raises:
            UserError: the teacher has no such layer.
        """
        where = "section init_student.layers"
        if not isinstance(self.layers, ImportantLayers):
            return layer_positions(self.layers, depth, where)
        ranked = sorted(range(depth), key=lambda n: (-scores[n] if scores else 0, n))
        kept = sorted(ranked[: self.layers.important])
        # a teacher of fewer layers: positions that it lacks, for the error that names them
        missing = range(depth, self.layers.important)
        return layer_positions((*kept, *missing), depth, where)

    def preview(self, teacher_info: ModelInfo | None) -> tuple[ModelInfo, dict[str, Any]]:
        """Return the model whose tokenizer and template the student has, and its own sizes."""
        assert teacher_info is not None  # `teacher_of` has refused a teacher without weights
        from cohobate.students.from_config import parameters_after_cut

        kept, width = self.kept_layers(teacher_info.depth), self.width
        widths = None if width is None else (width.groups, width.neurons)
        parameters = parameters_after_cut(teacher_info.folder, kept, widths)
        sizes = {"layers": len(kept), "parameters": parameters}
        return teacher_info, teacher_info.to_json() | sizes | {"type": self.type}

    def _tokenizer_of_teacher(
        self, teachers: Mapping[str, Teacher], folder: Path
    ) -> "PreTrainedTokenizerBase":
        """Return the teacher's tokenizer; a tuned teacher's is set already."""
        if self.of == "data/preflight":
            return self.teacher_of(teachers).load_tokenizer(folder)
        return checkpoints.load_tokenizer(folder)

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the teacher, and keep some of its layers, heads and neurons."""
        from cohobate.students.layer_cutting import keep_layers, layer_stack

        # the fetched model is found through its pin, a tuned one is in the project
        folder = Path(self.of)
        if self.of == "data/preflight":
            folder = self.teacher_of(teachers).folder(pins.teachers[self.teacher])
        model, _ = checkpoints.load(folder)
        tokenizer = self._tokenizer_of_teacher(teachers, folder)
        if not self._calibrated:
            keep_layers(model, self.kept_layers(len(layer_stack(model))))
            return model, tokenizer
        from cohobate.students.importance import calibration_rows, measure_importance
        from cohobate.students.width_cutting import keep_widths

        rows = calibration_rows(Path(self.rows), self.calibration_rows)
        importance = measure_importance(model, tokenizer, rows, widths=self.width is not None)
        kept = self.kept_layers(len(layer_stack(model)), importance.layers_L.tolist())
        keep_layers(model, kept)
        say(f"layers kept: {', '.join(map(str, kept))}")
        if self.width is not None:
            of_kept = (importance.groups_LG[kept], importance.neurons_LI[kept])
            keep_widths(model, *of_kept, self.width.groups, self.width.neurons)
        return model, tokenizer


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
        from cohobate.students.from_config import random_model

        assert teacher_info is not None  # `teacher_of` has refused a teacher without weights
        model = random_model(teacher_info.folder, self.sizes, self.seed, device="meta")
        sizes = {"layers": self.layers, "parameters": model.num_parameters()}
        return teacher_info, teacher_info.to_json() | sizes | {"type": self.type}

    def build(
        self, teachers: Mapping[str, Teacher], pins: PinnedModels, task: Task | None = None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Return a model with random weights, and the teacher's tokenizer."""
        from cohobate.students.from_config import random_model

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
