"""The smallest change of params.yaml with which a stage fits into memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, Self, TypeVar

from pydantic import ValidationError

from cohobate.generation.requests import Batching
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.packages import is_installed

Training = TypeVar("Training", bound=Hyperparameters)
Changes = dict[str, Any]
"""New values, by the name of the field."""


def smallest_change(
    phase: Training, fits: Callable[[Training], bool], devices: int | None = None
) -> Changes | None:
    """Return the first change with which a phase fits; None where none of them does.

    Those come first that leave the result as it is (fewer rows or logits at once), then those that
    divide the models, then those that train something else. Where no single change is enough, they
    are added one by one.

    Args:
        phase: one that does not fit.
        fits: whether another one would.
        devices: workers that could train together.
    """
    singles = [*_changes(phase, devices)]
    for change in singles:
        if fits(_changed(phase, change)):
            return change
    together: Changes = {}
    # of each field its largest change alone
    for change in {tuple(change): change for change in singles}.values():
        together = together | change
        if fits(_changed(phase, together)):
            return _without_needless(phase, fits, together)
    return None


def as_settings(section: str, changes: Changes) -> str:
    """Return changes as options of `cohobate run`."""
    return " ".join(f"--set {_quoted(f'{section}.{key}={v}')}" for key, v in changes.items())


def flow(values: Mapping[str, Any]) -> str:
    """Return a mapping as YAML on one line, as `--set` reads it."""
    items = (f"{key}: {flow(x) if isinstance(x, dict) else x}" for key, x in values.items())
    return "{" + ", ".join(items) + "}"


class Batched(Protocol):
    """A section with a batch in it."""

    @property
    def batching(self) -> Batching:
        """The batch."""

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """Return it with other values."""


BatchedSection = TypeVar("BatchedSection", bound=Batched)


def with_tokens(section: BatchedSection, tokens: int) -> BatchedSection:
    """Return a section with so many tokens in a batch."""
    batching = section.batching.model_copy(update={"tokens": tokens})
    return section.model_copy(update={"batching": batching})


def batching_of(section: Batched, tokens: int) -> dict[str, Any]:
    """Return the batch of a section as params.yaml spells it, with so many tokens."""
    return section.batching.model_dump(exclude_unset=True) | {"tokens": tokens}


def _quoted(setting: str) -> str:
    return f"'{setting}'" if set(setting) & set(" {[") else setting


def _changes(phase: Hyperparameters, devices: int | None) -> Iterator[Changes]:
    share = -(-phase.batch_size // getattr(phase, "workers", 1))
    rows = min(phase.rows_at_once, share)
    while rows > 1:
        rows //= 2
        yield {"micro_batch_size": rows}
    tokens = phase.chunk_tokens
    while tokens > 64:
        tokens //= 2
        yield {"chunk_tokens": tokens}
    if not phase.activation_checkpointing:
        yield {"activation_checkpointing": "true"}
    if "workers" in type(phase).model_fields:
        yield from _changes_of_phase(phase, devices)
    if phase.optimiser == "adamw" and is_installed("torchao"):
        yield {"optimiser": "adamw_8bit"}
    if phase.optimiser == "adamw":
        yield {"optimiser": "adamw_offloaded"}
    if phase.optimiser == "adamw" and phase.sharding != "on":
        yield {"optimiser": "adafactor"}
    if phase.adapter.type == "full" and phase.quantisation.type == "none":
        yield {"adapter": "{type: lora}"}
        yield {"adapter": "{type: lora, base_precision: bfloat16}"}
        if phase.sharding != "on" and is_installed("bitsandbytes"):
            yield {"adapter": "{type: lora, base_precision: nf4}"}


def _changes_of_phase(phase: Any, devices: int | None) -> Iterator[Changes]:
    """Yield what divides the models of a phase, or takes its live teacher away."""
    workers = phase.workers
    if workers > 1 and phase.sharding != "on":
        yield {"sharding": "on"}
    while devices and 2 * workers <= devices and phase.batch_size % (2 * workers) == 0:
        workers *= 2
        yield {"workers": workers}
    live = phase.method == "kd" and phase.targets.startswith("models/adapt/")
    if live and not phase.live_terms:
        yield {"targets": f"data/capture/{phase.targets.rpartition('/')[2]}"}


def _changed(phase: Training, changes: Changes) -> Training:
    """Return a phase with other values, as they would be read from params.yaml."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    values = {name: yaml.load(v) if isinstance(v, str) else v for name, v in changes.items()}
    fields = phase.model_dump(by_alias=True, exclude_unset=True) | values
    try:
        return type(phase).model_validate(fields)
    except ValidationError:  # settings that exclude each other: as it was, it does not fit
        return phase


def _without_needless(
    phase: Training, fits: Callable[[Training], bool], changes: Changes
) -> Changes:
    """Return changes without those that it fits without."""
    kept = dict(changes)
    for name in changes:
        fewer = {key: value for key, value in kept.items() if key != name}
        if fewer and fits(_changed(phase, fewer)):
            kept = fewer
    return kept
