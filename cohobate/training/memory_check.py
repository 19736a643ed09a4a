"""Refusal of a training that does not fit into memory, with what would make it fit."""

from collections.abc import Mapping, Sequence
from typing import Any

from cohobate.errors import UserError
from cohobate.models.model_size import size_of_model
from cohobate.training.device_memory import GIB, available_memory
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import (
    ACTIVATIONS,
    GRADIENTS,
    LOGITS,
    OPTIMISER,
    PROGRAM,
    TEACHERS,
    WEIGHTS,
    Placement,
    TeacherSize,
    peak_memory,
)

_TOO_HIGH = 1.15
_FIXES = {
    WEIGHTS: "a smaller student",
    GRADIENTS: "adapter: {type: lora}",
    OPTIMISER: "optimiser: adamw_8bit or adafactor, or adapter: {type: lora}",
    ACTIVATIONS: "a smaller micro_batch_size, or activation_checkpointing: true",
    LOGITS: "a smaller chunk_tokens",
    TEACHERS: "stored signals, targets: data/capture/<teacher>",
}


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
    from cohobate.models.mapped_weights import is_mapped

    available = available_memory()
    if available is None:
        return
    size = size_of_model(model)
    sizes = [TeacherSize(size_of_model(teacher), _unread(teacher)) for teacher in teachers]
    parts = peak_memory(size, hyperparameters, tokens, sizes, placement=Placement(workers=workers))
    # models that are loaded: their weights are no longer in what is available
    loaded = 0 if is_mapped(model) else 4 * size.parameters
    parts |= {PROGRAM: 0, WEIGHTS: max(0, parts[WEIGHTS] - loaded)}
    check_memory(f"training on rows of {tokens} tokens", parts, available // workers, where=where)


def _unread(model: Any) -> int:
    """Return the bytes of a weight that is still in its file; 0 of one that is loaded."""
    from cohobate.models.mapped_weights import format_of, is_mapped

    return format_of(model).itemsize if is_mapped(model) else 0
