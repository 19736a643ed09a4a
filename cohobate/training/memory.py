"""Estimates of the memory that training takes at its peak, from sizes alone: nothing is loaded.

An estimate adds up what is allocated at each of four moments of an update, and takes the largest:
the head's loss, the live teacher's pass, the begin of the backward pass, and the optimiser's step.
The bytes that a layer keeps for its backward pass are counted, not fitted: they are those of the
tensors that autograd saves (tests/cohobate/training/test_memory.py counts them again). What the
memory allocator and the processor's library add is not in it. `python -m benchmarks.memory` holds
the estimates to measured peaks; docs/memory.md has the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cohobate.errors import UserError
from cohobate.fast.frozen import PACKED_BYTES
from cohobate.models.model_size import ModelSize, size_of_model
from cohobate.models.number_formats import resolve
from cohobate.training.activation_memory import KeptForBackward, forward_bytes, kept_for_backward
from cohobate.training.device_memory import GIB, available_memory
from cohobate.training.hyperparameters import Hyperparameters

PROGRAM_BYTES = 520 << 20
"""Bytes of Python with torch and transformers, before any model."""
GPU_CONTEXT_BYTES = 1 << 30
"""Bytes of a GPU that CUDA's context and libraries take. An estimate, not measured."""
_MOMENTS = {"adamw": 8, "adafactor": 0, "sgd": 0}  # bytes a trained weight
_BLOCKWISE = 32 << 20
"""Bytes of the elementwise part of the head's loss on a CPU, whatever the vocabulary."""

WEIGHTS, GRADIENTS, OPTIMISER, ACTIVATIONS, LOGITS, TEACHERS, PROGRAM = (
    "weights",
    "gradients",
    "optimiser",
    "activations",
    "logits",
    "live teachers",
    "the program",
)
PARTS = (WEIGHTS, GRADIENTS, OPTIMISER, ACTIVATIONS, LOGITS, TEACHERS, PROGRAM)
_TOO_HIGH = 1.15
_FIXES = {
    WEIGHTS: "a smaller student",
    GRADIENTS: "adapter: {type: lora}",
    OPTIMISER: "optimiser: adafactor, or adapter: {type: lora}",
    ACTIVATIONS: "a smaller micro_batch_size",
    LOGITS: "a smaller chunk_tokens",
    TEACHERS: "stored signals, targets: data/capture/<teacher>",
}


@dataclass(frozen=True)
class TeacherSize:
    """A teacher that is in memory beside the student."""

    size: ModelSize
    bytes_per_weight: int = 2
    """0 for weights that are loaded already."""


@dataclass(frozen=True)
class Placement:
    """Where a training runs, as far as its memory depends on it."""

    device: str = "cpu"
    workers: int = 1
    sharded: bool = False
    """Weights, gradients and moments are divided among the workers."""

    @property
    def shards(self) -> int:
        """Among how many workers a weight is divided."""
        return self.workers if self.sharded else 1


ALONE = Placement()


def trained_parameters(size: ModelSize, hyperparameters: Hyperparameters) -> int:
    """Return the number of weights that get a gradient."""
    active = max(0, size.layers - hyperparameters.freeze.layers)
    if hyperparameters.adapter.type == "lora":
        # A and B have rank · (inputs + outputs): q and o of width and queries, k and v of width and
        # keys; gate, up and down of width and neurons
        inputs_and_outputs = 2 * (size.width + (size.queries or size.width))
        inputs_and_outputs += 2 * (size.width + (size.keys or size.width))
        inputs_and_outputs += 3 * (size.width + size.neurons)
        return hyperparameters.adapter.rank * inputs_and_outputs * active
    return sum(_trained_ends(size, hyperparameters)) + size.body * active // max(1, size.layers)


def _trained_ends(size: ModelSize, hyperparameters: Hyperparameters) -> tuple[int, int]:
    """Return how many weights of the embeddings, and of a head of its own, get a gradient."""
    if hyperparameters.adapter.type == "lora":
        return 0, 0
    frozen = hyperparameters.freeze
    # a tied matrix is trained as long as the embeddings are; `freeze.head` is of a second one
    matrix = size.embeddings if size.tied else size.embeddings // 2
    head = 0 if size.tied or frozen.head else matrix
    return (0 if frozen.embeddings else matrix), head


def peak_memory(
    size: ModelSize,
    hyperparameters: Hyperparameters,
    tokens: int,
    teachers: Sequence[TeacherSize] = (),
    *,
    placement: Placement = ALONE,
    rows_each: int = 1,
) -> dict[str, int]:
    """Return the bytes of each part at the peak of one worker, in the order of `PARTS`.

    Args:
        size: of the student.
        hyperparameters: precision, optimiser, adapter, batch size and chunk.
        tokens: of the longest row.
        teachers: frozen models in memory beside it.
        placement: device, and workers.
        rows_each: rows of the model in one of the batch: 2 where it is a pair.
    """
    share = -(-hyperparameters.batch_size // placement.workers)
    at_once = min(hyperparameters.rows_at_once, share)
    update = _Update(
        size, hyperparameters, tokens, tuple(teachers), placement, at_once * rows_each,
        accumulates=at_once < share,
    )  # fmt: skip
    most = max(update.moments(), key=lambda parts: sum(parts.values()))
    return {part: most.get(part, 0) for part in PARTS}


@dataclass(frozen=True)
class _Update:
    """One update of a training, and what is in memory at its moments."""

    size: ModelSize
    how: Hyperparameters
    tokens: int
    teachers: tuple[TeacherSize, ...]
    placement: Placement
    rows: int
    accumulates: bool
    """Whether gradients of earlier micro-batches are in memory during the forward pass."""

    @property
    def on_cpu(self) -> bool:
        return not self.placement.device.startswith("cuda")

    @property
    def half(self) -> bool:
        return resolve(self.how.precision, self.placement.device) == "bfloat16"

    @property
    def _kept(self) -> KeptForBackward:
        adapter, eager = self.how.adapter, self.how.attention == "eager"
        rank = adapter.rank if adapter.type == "lora" else 0
        return kept_for_backward(
            self.tokens, half=self.half, on_cpu=self.on_cpu, eager=eager, rank=rank
        )

    @property
    def active(self) -> int:
        """Layers that have a backward pass: frozen lowest ones keep nothing for it."""
        return max(0, self.size.layers - self.how.freeze.layers)

    def moments(self) -> list[dict[str, int]]:
        """Return the parts at each moment that can be the peak."""
        trained, wide = trained_parameters(self.size, self.how), self.size.head
        held = {
            PROGRAM: PROGRAM_BYTES if self.on_cpu else GPU_CONTEXT_BYTES,
            WEIGHTS: 4 * self.size.parameters,
            OPTIMISER: _MOMENTS[self.how.optimiser] * trained,
            TEACHERS: sum(self._frozen(teacher) for teacher in self.teachers),
        }
        # the head's gradient is complete with its loss; the others come with the backward pass
        of_head = 4 * wide if self._trains_head else 0
        before = 4 * trained + of_head if self.accumulates else of_head
        if self.half and self.on_cpu:
            held[WEIGHTS] += 2 * wide  # the head's cast is kept
        in_pass = held | {GRADIENTS: before, ACTIVATIONS: self._activations()}
        # autocast keeps a bfloat16 copy of each linear map until the backward pass has used it
        in_pass[WEIGHTS] += 2 * self.size.block * self.active if self.half else 0
        teachers_pass = max([0, *(self._teacher_pass(teacher) for teacher in self.teachers)])
        layer_back = in_pass[ACTIVATIONS] + self._layer_backward()
        return [
            in_pass | {LOGITS: self._logits()},
            in_pass | {TEACHERS: held[TEACHERS] + teachers_pass},
            in_pass | {ACTIVATIONS: layer_back},
            held | {GRADIENTS: 4 * trained, ACTIVATIONS: self._step()},
        ]

    @property
    def _trains_head(self) -> bool:
        embeddings, head = _trained_ends(self.size, self.how)
        return bool(embeddings if self.size.tied else head)

    def _activations(self) -> int:
        a_token = self._kept.bytes(self.size, self.tokens)
        # the last layer's output, and its norm
        return self.rows * self.tokens * (self.active * a_token + 12 * self.size.width)

    def _layer_backward(self) -> int:
        """Return what the backward pass of one layer adds to what is kept for it."""
        number = 2 if self.half else 4
        mlp = 3 * number * self.size.neurons
        scores = 8 * self.size.heads * self.tokens if self._kept.scores else 0
        return self.rows * self.tokens * (8 * self.size.width + max(mlp, scores))

    def _logits(self) -> int:
        """Return the bytes of the head's loss: logits of one chunk, and what they become."""
        chunk = min(self.how.chunk_tokens, self.rows * self.tokens)
        number = 2 if self.half else 4
        # the selected hidden states, their gradient, and its cast
        hidden = self.rows * self.tokens * self.size.width * (4 + number + 4 * self.half)
        live = sum(each.bytes_per_weight or number for each in self.teachers)
        products = chunk * self.size.vocabulary * (number + live)
        if self.on_cpu:
            return hidden + products + _BLOCKWISE
        # a GPU does what is elementwise over a chunk at once: student, teacher, their logarithms,
        # a term's gradient, the sum's and an exponential, in float32; stored signals need three
        elementwise = 4 * (7 if self.teachers else 3) * chunk * self.size.vocabulary
        cast = number * self.size.head if self.half else 0
        return hidden + products + elementwise + cast

    def _frozen(self, teacher: TeacherSize) -> int:
        return frozen_bytes(teacher.size, teacher.bytes_per_weight, on_cpu=self.on_cpu)

    def _teacher_pass(self, teacher: TeacherSize) -> int:
        """Return what a teacher's forward pass adds: the tensors of one layer at a time."""
        return (
            self.rows
            * self.tokens
            * forward_bytes(
                teacher.size, teacher.bytes_per_weight or 4, self.tokens, on_cpu=self.on_cpu
            )
        )

    def _step(self) -> int:
        # Adafactor makes its update of one weight matrix at a time, squared first
        largest = max(self.size.width * self.size.neurons, self.size.head * self._trains_head)
        return 8 * largest if self.how.optimiser == "adafactor" else 0


def frozen_bytes(size: ModelSize, bytes_per_weight: int, *, on_cpu: bool = True) -> int:
    """Return the bytes of a frozen model.

    On a CPU its linear layers are held twice, the second time packed for products
    (cohobate/fast/packed_linear.py), unless they are large.
    """
    # of a tied matrix the copy as head is packed, the one as embedding is not
    copy = bytes_per_weight * (size.body + size.head)
    packed = copy if on_cpu and copy <= PACKED_BYTES else 0
    return bytes_per_weight * size.parameters + packed


def check_memory(
    label: str, parts: Mapping[str, int], available: int, *, where: str, fix: str = ""
) -> None:
    """Refuse a run that surely needs more memory than is available.

    An estimate may be 15 % too high: what is above by less is let through.

    Args:
        label: the run, in messages.
        parts: its estimate.
        available: bytes.
        where: the section of params.yaml.
        fix: a change with which it fits; without it, params that make the largest parts smaller.

    Raises:
        UserError: names the parts, the largest first, and the fix.
    """
    total = sum(parts.values())
    if total <= _TOO_HIGH * available:
        return
    most = sorted((part for part in _FIXES if parts.get(part)), key=lambda part: -parts[part])
    shares = ", ".join(f"{part} {parts[part] / GIB:.1f}" for part in most)
    raise UserError(
        f"{label} needs {total / GIB:.1f} GiB of memory, {available / GIB:.1f} GiB available "
        f"({shares})",
        where=where,
        fix=fix or " or ".join(_FIXES[part] for part in most[:2]),
    )


def check_training_memory(
    model: Any,
    hyperparameters: Hyperparameters,
    tokens: int,
    teachers: Sequence[Any],
    *,
    where: str,
    workers: int = 1,
) -> None:
    """Refuse a run whose models are loaded where memory is short for what training adds.

    Raises:
        UserError: as `check_memory`.
    """
    available = available_memory()
    if available is None:
        return
    size = size_of_model(model)
    sizes = [TeacherSize(size_of_model(teacher), 0) for teacher in teachers]
    parts = peak_memory(size, hyperparameters, tokens, sizes, placement=Placement(workers=workers))
    # all models are loaded: their weights are no longer in what is available
    parts |= {PROGRAM: 0, WEIGHTS: parts[WEIGHTS] - 4 * size.parameters}
    check_memory(f"training on rows of {tokens} tokens", parts, available // workers, where=where)
