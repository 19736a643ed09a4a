"""Estimates of the memory that training takes at its peak, from sizes alone: nothing is loaded.

An estimate adds up what is allocated at each of five moments of an update, and takes the largest:
the head's loss, the live teacher's pass, the begin and the end of the backward pass, and the
optimiser's step.
The bytes that a layer keeps for its backward pass are counted, not fitted: they are those of the
tensors that autograd saves (tests/cohobate/training/test_memory.py counts them again). What the
heap adds on a CPU is measured (`_HEAP`); what a GPU's allocator adds is not in it. `python -m
benchmarks.memory` holds the estimates to measured peaks; docs/memory.md has the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cohobate.fast.frozen import PACKED_BYTES
from cohobate.models.model_size import ModelSize
from cohobate.models.number_formats import BYTES, resolve
from cohobate.training.activation_memory import KeptForBackward, forward_bytes, kept_for_backward
from cohobate.training.hyperparameters import Hyperparameters

PROGRAM_BYTES = 520 << 20
"""Bytes of Python with torch and transformers, before any model."""
GPU_CONTEXT_BYTES = 1 << 30
"""Bytes of a GPU that CUDA's context and libraries take. An estimate, not measured."""
_MOMENTS = {"adamw": 8, "adamw_8bit": 2}  # bytes a trained weight
_NF4_BYTES = 0.5625  # of a weight in 4 bits, with its part of a float32 scale for each 64
_HEAP = 1.25
"""What activations take of a CPU's memory, over the tensors themselves: the heap does not give back
all that is freed. Measured by `python -m benchmarks.memory`: 1.12 with rows of 128 tokens, 1.22 to
1.27 with longer ones, 1.23 to 1.34 in bfloat16."""
_HEAP_OF_LORA = 1.4
"""The same where small tensors of updates lie between large ones. Measured: 1.33 and 1.48."""
_HEAP_OF_CHECKPOINTING = 2.0
"""The same where the activations of one block are made again and again, between gradients that
stay. Measured: 1.8 and 2.6, of activations that are a third of those without it."""
_RETURNED = 32 << 20
"""Bytes from which the C library takes a tensor's memory from the system and gives it back."""
_BLOCKWISE = 32 << 20
"""Bytes of the elementwise part of the head's loss on a CPU, whatever the vocabulary."""

WEIGHTS, GATHERED, GRADIENTS, OPTIMISER = "weights", "gathered", "gradients", "optimiser"
ACTIVATIONS, LOGITS, TEACHERS, PROGRAM = "activations", "logits", "live teachers", "the program"
PARTS = (WEIGHTS, GATHERED, GRADIENTS, OPTIMISER, ACTIVATIONS, LOGITS, TEACHERS, PROGRAM)
"""`gathered`: weights that a sharded model has whole for the moment."""


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

    def shards(self, hyperparameters: Hyperparameters) -> int:
        """Return among how many workers a weight, its gradient and its moments are divided."""
        auto = hyperparameters.sharding == "auto" and self.device != "cpu"
        auto = auto and hyperparameters.can_shard
        return self.workers if hyperparameters.sharding == "on" or auto else 1


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
    moments = [update.with_heap(parts) for parts in update.moments()]
    most = max(moments, key=lambda parts: sum(parts.values()))
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
            self.tokens,
            half=self.half,
            on_cpu=self.on_cpu,
            eager=eager,
            rank=rank,
            encoder=not self.size.generates,
        )

    @property
    def active(self) -> int:
        """Layers that have a backward pass: frozen lowest ones keep nothing for it."""
        return max(0, self.size.layers - self.how.freeze.layers)

    @property
    def shards(self) -> int:
        return self.placement.shards(self.how)

    def with_heap(self, parts: dict[str, int]) -> dict[str, int]:
        """Return the parts of a moment with what a CPU's heap adds to their tensors."""
        if not self.on_cpu:
            return parts
        share = _HEAP_OF_LORA if self.how.adapter.type == "lora" else _HEAP
        share = _HEAP_OF_CHECKPOINTING if self.how.activation_checkpointing else share
        return parts | {part: int(share * parts.get(part, 0)) for part in (ACTIVATIONS, LOGITS)}

    def moments(self) -> list[dict[str, int]]:
        """Return the parts at each moment that can be the peak."""
        trained, shards = trained_parameters(self.size, self.how), self.shards
        # offloaded moments lie in the host's memory
        optimiser = self.how.optimiser
        if optimiser == "adamw_offloaded" and self.on_cpu:
            optimiser = "adamw"
        held = {
            PROGRAM: PROGRAM_BYTES if self.on_cpu else GPU_CONTEXT_BYTES,
            WEIGHTS: self._weights() // shards,
            GATHERED: self._gathered(),
            OPTIMISER: _MOMENTS.get(optimiser, 0) * trained // shards,
            TEACHERS: sum(self._frozen(teacher) for teacher in self.teachers),
        }
        # the head's gradient is complete with its loss; the others come with the backward pass
        of_head = 4 * self.size.head if self._trains_head else 0
        before = of_head + (4 * trained // shards if self.accumulates else 0)
        # DistributedDataParallel sums gradients in buckets of its own
        buckets = 4 * trained if self.placement.workers > 1 and shards == 1 else 0
        before += buckets
        held[WEIGHTS] += self._cast_head()
        in_pass = held | {GRADIENTS: before, ACTIVATIONS: self._activations()}
        in_pass[WEIGHTS] += self._cast_blocks()
        teachers_pass = max([0, *(self._teacher_pass(teacher) for teacher in self.teachers)])
        layer_back, complete = self._layer_backward(), 4 * trained // shards + buckets
        begin = {ACTIVATIONS: in_pass[ACTIVATIONS] + layer_back}
        begin |= {GRADIENTS: before + self._whole_gradients()}
        # of the lowest layer, whose activations are the last ones
        lowest = 0 if self.how.activation_checkpointing else self._layer()
        end = {ACTIVATIONS: lowest + layer_back}
        end |= {GRADIENTS: complete + self._whole_gradients()}
        return [
            in_pass | {LOGITS: self._logits()},
            in_pass | {TEACHERS: held[TEACHERS] + teachers_pass},
            in_pass | begin,
            held | end,
            held | {GRADIENTS: complete, ACTIVATIONS: self._step(), GATHERED: 0},
        ]

    @property
    def _base(self) -> int:
        """Bytes of a weight that is not in 4 bits: float32, but for a frozen one under LoRA."""
        adapter, device = self.how.adapter, self.placement.device
        if adapter.type != "lora":
            return 4
        chosen = "auto" if adapter.base_precision == "nf4" else adapter.base_precision
        return BYTES[resolve(chosen, device)]

    @property
    def _product(self) -> int:
        """Bytes of a number in products."""
        return 2 if self.half else 4

    def _weights(self) -> int:
        updates = trained_parameters(self.size, self.how) if self.how.adapter.type == "lora" else 0
        in_4_bits = self.size.body if self.how.in_4_bits else 0
        others = self.size.parameters - in_4_bits
        return int(_NF4_BYTES * in_4_bits) + self._base * others + 4 * updates

    def _cast_blocks(self) -> int:
        """Return what autocast keeps of each linear map until the backward pass has used it.

        Sharded blocks are gathered in bfloat16 already.
        """
        casts = self.half and self._base == 4 and self.shards == 1 and not self.how.in_4_bits
        return 2 * self.size.block * self.active if casts else 0

    def _cast_head(self) -> int:
        """Return what is kept of the head in bfloat16: on a CPU always, elsewhere if frozen."""
        kept = self.half and self._base == 4 and (self.on_cpu or not self._trains_head)
        return 2 * self.size.head if kept else 0

    def _gathered(self) -> int:
        """Return what is whole of a sharded student: the ends, a block, and the one behind it.

        On a CPU all blocks: the place of each stays in the heap, between activations that are kept.
        """
        if self.shards == 1:
            return 0
        of_block = min(self._base, self._product) * self.size.block
        if self.on_cpu and of_block <= _RETURNED:
            blocks = self.size.layers
            return int(_HEAP * (self._base * self.size.embeddings + blocks * of_block))
        return self._base * self.size.embeddings + 2 * of_block

    def _whole_gradients(self) -> int:
        """Return the gradients of a sharded block before they are divided, and as they are sent."""
        if self.shards == 1:
            return 0
        embeddings, head = _trained_ends(self.size, self.how)
        block = self.size.block if self.how.adapter.type == "full" else 0
        return max((self._product + 4) * block, 4 * max(embeddings, head))

    @property
    def _trains_head(self) -> bool:
        embeddings, head = _trained_ends(self.size, self.how)
        return bool(embeddings if self.size.tied else head)

    def _layer(self) -> int:
        """Return what one layer keeps for its backward pass."""
        return self.rows * self.tokens * self._kept.bytes(self.size, self.tokens)

    def _activations(self) -> int:
        """Return what all layers keep in the forward pass."""
        kept = self._layer() * self.active
        if self.how.activation_checkpointing:  # each block's input
            kept = 4 * self.rows * self.tokens * self.size.width * self.active
        # the last layer's output, and its norm
        return kept + 12 * self.rows * self.tokens * self.size.width

    def _layer_backward(self) -> int:
        """Return what the backward pass of one layer adds to what is kept for it.

        With activation checkpointing also what it keeps, which is made again.
        """
        mlp = 3 * self._product * self.size.neurons
        scores = 8 * self.size.heads * self.tokens if self._kept.scores else 0
        added = self.rows * self.tokens * (8 * self.size.width + max(mlp, scores))
        return added + (self._layer() if self.how.activation_checkpointing else 0)

    def _logits(self) -> int:
        """Return the bytes of the head's loss: logits of one chunk, and what they become."""
        if not self.size.generates:  # a label a row
            return 8 * self.rows * self.size.width
        chunk = min(self.how.chunk_tokens, self.rows * self.tokens)
        number = self._product
        # the selected hidden states, their gradient, and its cast
        hidden = self.rows * self.tokens * self.size.width * (4 + number + 4 * self.half)
        live = sum(each.bytes_per_weight or number for each in self.teachers)
        products = chunk * self.size.vocabulary * (number + live)
        if self.on_cpu:
            return hidden + products + _BLOCKWISE
        # a GPU does what is elementwise over a chunk at once: student, teacher, their logarithms,
        # a term's gradient, the sum's and an exponential, in float32; stored signals need three
        elementwise = 4 * (7 if self.teachers else 3) * chunk * self.size.vocabulary
        cast = 0 if self._cast_head() else number * self.size.head * (self._base == 4)
        return hidden + products + elementwise + cast

    def _frozen(self, teacher: TeacherSize) -> int:
        size, number = teacher.size, teacher.bytes_per_weight
        if self.shards == 1:
            return frozen_bytes(size, number, on_cpu=self.on_cpu)
        # its ends stay whole; of its blocks one and the one behind it are
        return number * (size.parameters // self.shards + size.embeddings + 2 * size.block)

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
        # Adafactor makes its update of one weight matrix at a time, squared first; AdamW with
        # moments in 8 bits has both of one matrix in float32 twice
        largest = max(self.size.width * self.size.neurons, self.size.head * self._trains_head)
        of_weight = {"adafactor": 8, "adamw_8bit": 16}.get(self.how.optimiser, 0)
        return of_weight * largest // self.shards


def frozen_bytes(size: ModelSize, bytes_per_weight: int, *, on_cpu: bool = True) -> int:
    """Return the bytes of a frozen model.

    On a CPU its linear layers are held twice, the second time packed for products
    (cohobate/fast/packed_linear.py), unless they are large.
    """
    # of a tied matrix the copy as head is packed, the one as embedding is not
    copy = bytes_per_weight * (size.body + size.head)
    packed = copy if on_cpu and copy <= PACKED_BYTES else 0
    return bytes_per_weight * size.parameters + packed
