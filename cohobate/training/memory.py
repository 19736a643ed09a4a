"""Estimates of the memory that training takes at its peak, from sizes alone: nothing is loaded.

The parts are weights, gradients and the optimiser's moments, activations that the backward pass
needs, the logits of one chunk, and live teachers. The bytes of an activation and of a logit are
fitted to runs of SmolLM2's first layers on a CPU, in MiB (teachers unpacked):

    sft, 32 rows at once                        estimated 1580, measured 1160
    kd or on_policy, live teacher, 16 rows      estimated 2030, measured 1690 and 2020
    the same with a trimmed vocabulary          estimated 1610, measured 1480

An estimate tells a run that fits from one that cannot. It is not made to fill a machine by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cohobate.errors import UserError
from cohobate.fast.frozen import PACKED_BYTES
from cohobate.training.hyperparameters import SHORT_ROW, Hyperparameters

GIB = 1 << 30
PROGRAM_BYTES = 700 << 20
"""Bytes of Python with torch and transformers, before any model."""
_MOMENTS = {"adamw": 8, "adafactor": 0, "sgd": 0}  # bytes a trained weight
_OF_WIDTH, _OF_NEURONS, _OF_MAPS = 40, 16, 8  # bytes an activation that backward needs
_OF_LOGIT = {False: 12, True: 24}  # bytes a logit of the chunk, without and with a live teacher

WEIGHTS, GRADIENTS, ACTIVATIONS, LOGITS, TEACHERS, PROGRAM = (
    "weights",
    "gradients and optimiser",
    "activations",
    "logits",
    "live teachers",
    "the program",
)
_TOO_HIGH = 4 / 3
_FIXES = {
    WEIGHTS: "a smaller student",
    GRADIENTS: "adapter: {type: lora}, or optimiser: adafactor",
    ACTIVATIONS: "a smaller micro_batch_size",
    LOGITS: "a smaller chunk_tokens",
    TEACHERS: "stored signals, targets: data/capture/<teacher>",
}


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a model that decide how much memory it takes."""

    parameters: int
    embeddings: int
    """Weights in embeddings and head."""
    layers: int
    width: int
    neurons: int
    """Of the MLP of a layer."""
    heads: int
    vocabulary: int
    keys: int = 0
    """Width of the keys of a layer, all heads that share none together."""

    @classmethod
    def of(
        cls, config: Mapping[str, Any], parameters: int, embeddings: int, layers: int
    ) -> "ModelSize":
        """Return the size of a model from its configuration."""
        width = int(config["hidden_size"])
        heads = int(config.get("num_attention_heads") or 1)
        return cls(
            parameters,
            embeddings,
            layers,
            width,
            int(config.get("intermediate_size") or 4 * width),
            heads,
            int(config["vocab_size"]),
            # grouped-query attention: fewer heads of keys than of queries, of the same width
            width * int(config.get("num_key_value_heads") or heads) // heads,
        )

    def with_layers(self, layers: int) -> "ModelSize":
        """Return the same model with so many of its layers."""
        # all layers are of one size
        body = (self.parameters - self.embeddings) * layers // max(1, self.layers)
        figures = {"parameters": self.embeddings + body, "layers": layers}
        return ModelSize(**(vars(self) | figures))

    def inference_bytes(self, bytes_per_weight: int) -> int:
        """Return the bytes of a frozen model.

        Its linear layers are held twice, the second time packed for products
        (cohobate/fast/packed_linear.py), unless they are large.
        """
        # of a tied matrix the copy as head is packed, the one as embedding is not
        maps = self.parameters - self.embeddings + self.vocabulary * self.width
        copy = bytes_per_weight * maps
        return bytes_per_weight * self.parameters + (copy if copy <= PACKED_BYTES else 0)

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""
        return self.embeddings < 2 * self.vocabulary * self.width


@dataclass(frozen=True)
class TeacherSize:
    """A teacher that is in memory beside the student."""

    size: ModelSize
    bytes_per_weight: int = 2


def trained_parameters(size: ModelSize, hyperparameters: Hyperparameters) -> int:
    """Return the number of weights that get a gradient."""
    active = max(0, size.layers - hyperparameters.freeze.layers)
    if hyperparameters.adapter.type == "lora":
        # A and B have rank · (inputs + outputs): q, k, v, o of 2 widths each; gate, up and down of
        # a width and the neurons each
        a_layer = 11 * size.width + 3 * size.neurons
        return hyperparameters.adapter.rank * a_layer * active
    # a tied matrix is trained as long as the embeddings are; `freeze.head` is of a second one
    matrix = size.embeddings if size.tied else size.embeddings // 2
    ends = 0 if hyperparameters.freeze.embeddings else matrix
    if not size.tied and not hyperparameters.freeze.head:
        ends += matrix
    return ends + (size.parameters - size.embeddings) * active // max(1, size.layers)


def peak_memory(
    size: ModelSize,
    hyperparameters: Hyperparameters,
    tokens: int,
    teachers: Sequence[TeacherSize] = (),
    *,
    rows: int | None = None,
) -> dict[str, int]:
    """Return the bytes of each part, at the peak of one worker.

    Args:
        size: of the student.
        hyperparameters: precision, optimiser, adapter, batch size and chunk.
        tokens: of the longest row.
        teachers: frozen models in memory beside it.
        rows: in memory at once, where that is not `hyperparameters.rows_at_once`.
    """
    rows = rows or hyperparameters.rows_at_once
    trainable = trained_parameters(size, hyperparameters)
    half = hyperparameters.number_format == "bfloat16"
    body = size.parameters - size.embeddings
    active = max(0, size.layers - hyperparameters.freeze.layers)
    # frozen lowest layers have no backward pass, and keep nothing for it
    a_token = _OF_WIDTH * size.width + _OF_NEURONS * size.neurons
    if keeps_attention_maps(hyperparameters, tokens):
        a_token += _OF_MAPS * size.heads * tokens
    chunk = min(hyperparameters.chunk_tokens, rows * tokens)
    teacher_bytes = sum(
        each.size.inference_bytes(each.bytes_per_weight)
        # float32 activations of one layer at a time: a teacher has no backward pass
        + rows * tokens * 4 * (2 * each.size.width + 2 * each.size.neurons)
        for each in teachers
    )
    return {
        PROGRAM: PROGRAM_BYTES,
        # autocast caches a bfloat16 copy of each linear map
        WEIGHTS: 4 * size.parameters + (2 * body if half else 0),
        GRADIENTS: trainable * (4 + _MOMENTS[hyperparameters.optimiser]),
        ACTIVATIONS: rows * tokens * active * a_token,
        LOGITS: size.vocabulary * chunk * _OF_LOGIT[bool(teachers)],
        TEACHERS: teacher_bytes,
    }


def keeps_attention_maps(hyperparameters: Hyperparameters, tokens: int) -> bool:
    """Return whether attention maps stay in memory for the backward pass (on a CPU)."""
    return hyperparameters.attention == "eager" or (
        hyperparameters.attention == "auto" and tokens <= SHORT_ROW
    )


def check_memory(label: str, parts: Mapping[str, int], available: int, *, where: str) -> None:
    """Refuse a run that surely needs more memory than is available.

    An estimate may be a third too high: what is above by less is let through.

    Raises:
        UserError: names the parts, the largest first, and params that make the first two smaller.
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
        fix=" or ".join(_FIXES[part] for part in most[:2]),
    )


def size_of_model(model: Any) -> ModelSize:
    """Return the size of a causal LM of transformers."""
    from cohobate.models.layers import shared_names

    ends = {id(end.weight): end.weight.numel() for end in _ends(model) if end is not None}
    config = shared_names(model.config.get_text_config())
    layers = int(config["num_hidden_layers"])
    return ModelSize.of(config, model.num_parameters(), sum(ends.values()), layers)


def _ends(model: Any) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


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
    parts = peak_memory(size, hyperparameters, tokens, sizes)
    # all models are loaded: their weights are no longer in what is available
    parts |= {PROGRAM: 0, WEIGHTS: parts[WEIGHTS] - 4 * size.parameters}
    check_memory(f"training on rows of {tokens} tokens", parts, available // workers, where=where)


def available_on(device: str) -> int | None:
    """Return the bytes that are available on `device`; None where that is not known."""
    if not device.startswith("cuda"):
        return available_memory()
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes available to this process; None where the system does not say."""
    if not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines() if ":" in line)
    found = int(lines["MemAvailable"].split()[0]) * 1024
    try:  # a container's own limit; its page cache can be given up
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(found, limit - used + int(stats["inactive_file"]))
    except (OSError, ValueError, KeyError):
        return found
