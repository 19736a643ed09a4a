"""Students cut from a teacher: some of its layers, heads, neurons and directions."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from cohobate.data.records import Row
from cohobate.models import checkpoints
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo
from cohobate.models.upcycling import DenseExperts
from cohobate.params import Section
from cohobate.progress import say
from cohobate.scoring.verifiers import Task
from cohobate.students.base_initialization import Initialization, PinnedModels
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
    # left out of provenance where it is not given: earlier students keep their bytes
    rank: int | None = Field(None, ge=1, exclude_if=lambda rank: rank is None)
    """Principal directions of the hidden states that are kept: the student's `hidden_size`. Every
    linear layer becomes low-rank, embeddings and head too. All of them when not given."""
    experts: DenseExperts | None = Field(None, exclude_if=lambda experts: experts is None)
    """Of a teacher that is a mixture of experts (Mixtral): one MLP a layer in their place, as in a
    dense model: their `mean`, weighted by how much the router gives each of them on `rows`, or the
    `most_used`. All of them when not given."""
    calibration_rows: int = Field(256, ge=1)
    """Number of `rows` on which importance, directions and shares are measured."""

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
        return self._by_importance or self.rank is not None or self.experts is not None

    @property
    def _by_importance(self) -> bool:
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
        sparse = self.experts is not None and teacher_info.config.get("model_type") == "mixtral"
        parameters = parameters_after_cut(
            teacher_info.folder, kept, widths, self.rank, one_expert=sparse
        )
        sizes = {"layers": len(kept), "parameters": parameters}
        if self.rank is not None:
            whole = int(teacher_info.config["hidden_size"])
            of_embeddings = teacher_info.parameters_of_embeddings * self.rank // whole
            sizes |= {"width": self.rank, "parameters_of_embeddings": of_embeddings}
            config = teacher_info.config | {"hidden_size": self.rank}
            teacher_info = replace(teacher_info, config=config)
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
        """Load the teacher; keep some of its layers, heads, neurons and directions."""
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
        from cohobate.students.importance import calibration_rows

        rows = calibration_rows(Path(self.rows), self.calibration_rows)
        if self.experts is not None:
            model = self._merge_experts(model, tokenizer, rows)
        if self._by_importance:
            self._cut_by_importance(model, tokenizer, rows)
        else:
            keep_layers(model, self.kept_layers(len(layer_stack(model))))
        if self.rank is not None:
            from cohobate.students.rank_cutting import keep_rank

            # of the model that is left: its blocks read other hidden states than the teacher's
            share = keep_rank(model, tokenizer, rows, self.rank)
            say(f"{self.rank} directions keep {share:.1%} of the hidden states' power")
        return model, tokenizer

    def _merge_experts(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
    ) -> "PreTrainedModel":
        """Return the dense model of a mixture of experts."""
        from cohobate.models.experts import dense, expert_shares
        from cohobate.students.importance import calibration_batches

        assert self.experts is not None
        shares_LG = expert_shares(model, calibration_batches(tokenizer, rows))
        return dense(model, self.experts, shares_LG)

    def _cut_by_importance(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
    ) -> None:
        """Keep the layers, heads and neurons that matter most on rows."""
        from cohobate.students.importance import measure_importance
        from cohobate.students.layer_cutting import keep_layers, layer_stack
        from cohobate.students.width_cutting import keep_widths

        importance = measure_importance(model, tokenizer, rows, widths=self.width is not None)
        kept = self.kept_layers(len(layer_stack(model)), importance.layers_L.tolist())
        keep_layers(model, kept)
        say(f"layers kept: {', '.join(map(str, kept))}")
        if self.width is not None:
            of_kept = (importance.groups_LG[kept], importance.neurons_LI[kept])
            keep_widths(model, *of_kept, self.width.groups, self.width.neurons)
