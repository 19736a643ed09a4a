"""A phase of training: the params and steps that all methods share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, field_validator, model_validator

from cohobate.data.records import ASSIST, TRAIN, Row
from cohobate.errors import UserError
from cohobate.models.layer_choice import Layers
from cohobate.models.number_formats import NumberFormat
from cohobate.params import nearest
from cohobate.training.checkpointing import content_hash
from cohobate.training.dev_checks import DevChecks
from cohobate.training.hyperparameters import Hyperparameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cohobate.data.examples import Example
    from cohobate.training.history import Update

MODELS_DIR = Path("models")
BEST = "best"
"""Folder below a phase's with the checkpoints that are best on dev, where both are kept."""
WHOLE = "whole"
"""Folder below a phase's with its models of all layers, where a phase publishes an early exit."""
_NAME_SOURCES = "name the sources of collect.sources"
_NOT_DECISIVE = {"checkpoint_every", "replacements"}  # the outcome is the same whatever they are


class PhaseResult(NamedTuple):
    """What training of one seed returns beside the weights."""

    history: "list[Update]"
    rows: int
    """Number of rows that were trained on."""
    notes: Mapping[str, Any] = MappingProxyType({})
    """Further entries of summary.json."""
    extra_models: "Mapping[str, PreTrainedModel]" = MappingProxyType({})
    """Models that were trained beside the student and are saved, by name."""


class Phase(Hyperparameters):
    """One phase: its initial model, its rows, its targets and its hyperparameters."""

    start: str = Field(alias="from")
    """Below models/: `init_student`, `adapt/<teacher>`, or `train/<phase>` and `assist/<phase>`,
    seed by seed."""
    rows: str
    """The rows, such as `data/curriculum/train.jsonl` or `data/collect/labelled.jsonl`."""
    # left out of params where it is not given: earlier runs resume
    limit: int | None = Field(None, ge=1, exclude_if=lambda limit: limit is None)
    """Learn the first so many of the rows alone; all when not given."""
    targets: str
    """Where the targets are: the rows' own file, or a signal store such as `data/capture/main`."""
    keep_layers: Layers | None = None
    """Layers of the start that the phase goes on with, the others being dropped before it trains;
    a chain of such phases is progressive layer dropping. All of them when not given."""
    # left out of params where it is not given: earlier runs resume
    random_start: bool = Field(False, exclude_if=lambda drawn: not drawn)
    """Draw the start's weights anew, from the seed: a model of the same sizes that has learnt
    nothing, as a control for what a start is worth. `freeze.embeddings: false` goes with it."""
    target_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weight λ of the loss on each auxiliary target, such as `{rationale: 0.5}`; 1 where not given.
    The loss is the answers' mean over their tokens, plus λ times that target's over its own."""
    task_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, exclude_if=lambda weights: not weights
    )
    """Weight of the loss of each task's rows, by the names of `collect.sources`; 1 where not given.
    `mixing` decides how often they are drawn."""
    save_precision: NumberFormat = "bfloat16"
    """Number format of the weights on disk."""
    workers: int = Field(1, ge=1)
    """Processes that train together, each on its share of every update's rows. Ray Train runs
    them where there are more than one; each asks for a CPU slot, or a GPU where there are any."""
    replacements: int = Field(3, ge=0)
    """How often lost workers are replaced; all go on at the newest training checkpoint."""
    # left out of params where it is not given: earlier runs resume
    dev: DevChecks | None = Field(None, exclude_if=lambda checks: not checks)
    """Score the phase on dev rows as it trains, such as `{every: 20, rows: 200, keep: best,
    patience: 3}`: publish the best checkpoint, or end early. Not when not given."""

    @model_validator(mode="after")
    def _shares_are_equal(self) -> "Phase":
        if self.batch_size % self.workers:
            raise ValueError(f"batch_size must be a multiple of workers, which are {self.workers}")
        return self

    @model_validator(mode="after")
    def _adapter_fits_the_start(self) -> "Phase":
        dropped = self.keep_layers is not None
        if self.adapter.type == "lora" and self.adapter.save_adapter and dropped:
            raise ValueError("an adapter is of the whole start: save_adapter goes with all layers")
        return self

    @model_validator(mode="after")
    def _random_weights_are_trained(self) -> "Phase":
        if self.random_start and (self.freeze.embeddings or self.freeze.layers or self.freeze.head):
            raise ValueError("random weights would stay as they are: freeze: {embeddings: false}")
        if self.random_start and getattr(self, "method", "") in ("classify", "embed", "mlm"):
            raise ValueError("random_start is of models that generate")
        if self.random_start and self.adapter.type == "lora":
            raise ValueError("low-rank updates are of what a start has learnt: no random_start")
        return self

    @field_validator("start", "rows", "targets")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError("must stay inside the project")
        return path

    @property
    def crosses_tokenizers(self) -> bool:
        """Whether the teacher may have another tokenizer than the student."""
        return False

    def start_folder(self, seed: int) -> Path:
        """Return the checkpoint that the phase starts from."""
        return checkpoint_path(MODELS_DIR / self.start, seed)

    def load_initial_model(self, seed: int) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the initial model, without the layers that the phase does not keep.

        Raises:
            UserError: the checkpoint is damaged, or has no such layer.
        """
        return self.load_layers(seed, self.keep_layers)

    def load_layers(
        self, seed: int, layers: Layers | None
    ) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        """Load the initial model with some of its layers, or all."""
        from cohobate.models import checkpoints
        from cohobate.models.layer_choice import layer_positions
        from cohobate.students.layer_cutting import keep_layers, layer_stack

        model, tokenizer = checkpoints.load(self.start_folder(seed), mapped=self.shards)
        if layers is not None:
            depth = len(layer_stack(model))
            # positions count in the checkpoint that is loaded, which may have lost layers before
            keep_layers(model, layer_positions(layers, depth, "train.<phase>.keep_layers"))
        if self.random_start:
            from cohobate.students.random_weights import random_like

            model = random_like(model, seed)
        return model, tokenizer

    def params(self) -> dict[str, Any]:
        """Return the params that decide the outcome, as JSON values."""
        return self.model_dump(mode="json", by_alias=True, exclude=_NOT_DECISIVE)

    def decided_by(self, seed: int) -> list[Any]:
        """Return everything that decides the outcome, files by their content: the key of a run."""
        reads = [self.start_folder(seed), Path(self.rows), Path(self.targets)]
        return [self.params(), self.number_formats(), seed, *map(content_hash, reads)]

    def number_formats(self) -> dict[str, NumberFormat]:
        """Return in which number format the models of the phase run on this machine."""
        return {"student": self.number_format}

    def train(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        *,
        seed: int,
        label: str,
    ) -> PhaseResult:
        """Train `model` in place; each method overrides it.

        Raises:
            UserError: the rows and the targets do not fit, or training did not stay finite.
        """
        raise NotImplementedError

    def examples(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        rows: Sequence[Row],
        max_tokens: int | None = None,
    ) -> "list[Example]":
        """Return the rows as token ids; those without answer are left out, long ones too or cut.

        Args:
            tokenizer: the student's.
            rows: the rows.
            max_tokens: longest row; the phase's own `max_tokens` when not given.

        Raises:
            UserError: all rows are too long, or no row has a target of `target_weights` or a task
                of `task_weights`.
        """
        from cohobate.data.example_cache import encoded_examples
        from cohobate.data.row_length import LengthLimit

        limit = LengthLimit(max_tokens or self.max_tokens, self.too_long)
        examples = encoded_examples(tokenizer, rows, limit)
        limit.report(self.rows)
        limit.refuse_none(len(examples), f"max_tokens of the phase that learns {self.rows}")
        self._check_weights(examples)
        return [replace(one, weight=self._weight(one)) for one in examples]

    def _weight(self, example: "Example") -> float:
        """Return the weight of an example's loss: its row's, its target's and its task's."""
        of_target = self.target_weights.get(example.target, 1.0)
        return example.weight * of_target * self.task_weights.get(example.task, 1.0)

    def _check_weights(self, examples: "Sequence[Example]") -> None:
        """Refuse weights of what no row has: a misspelt name would leave its weight at 1."""
        targets = {example.target for example in examples if example.target}
        tasks = {example.task for example in examples if example.task}
        templates = "name the targets of cohobate/backends/templates/<template>.yaml, or none"
        for section, weights, names, missing, fix in (
            ("target_weights", self.target_weights, targets, "no row has a target", templates),
            ("task_weights", self.task_weights, tasks, "no row is of the task", _NAME_SOURCES),
        ):
            if unknown := sorted(set(weights) - names):
                raise UserError(
                    f"{missing} {unknown[0]!r}{nearest(unknown[0], names)}",
                    where=f"{self.rows}, and {section} of the phase",
                    fix=fix,
                )


def checkpoint_path(path: Path, seed: int) -> Path:
    """Return the checkpoint at a path: a phase of training has one for each seed."""
    return path / f"seed-{seed}" if path.parts[:2] in (TRAIN.parts, ASSIST.parts) else path
