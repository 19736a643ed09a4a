"""Memory estimates of each training phase and of each stage of a teacher.

Row lengths are not known yet. A phase that does not fit even with short rows is refused here. One
that does not fit with rows of `max_tokens` gets a warning, and is refused once its rows are known
(cohobate/training/trainer.py). Nothing is recorded: these are facts of the machine.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cohobate.backends.settings import GenerateParams
from cohobate.backends.transformers import Transformers
from cohobate.models import checkpoints
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo
from cohobate.models.number_formats import BYTES, resolve
from cohobate.progress import say
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import (
    ACTIVATIONS,
    GIB,
    LOGITS,
    PROGRAM,
    PROGRAM_BYTES,
    WEIGHTS,
    ModelSize,
    TeacherSize,
    available_on,
    check_memory,
    peak_memory,
)
from tasks.preflight.phases import PHASES

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

SHORT = 32
"""Tokens of a short row."""

Parts = dict[str, int]


def size_of(outline: ModelInfo, record: Mapping[str, Any] | None = None) -> ModelSize:
    """Return the size of a model, or of the student made from it by `record`."""
    sizes = record or outline.to_json()
    return ModelSize.of(
        outline.config, sizes["parameters"], sizes["parameters_of_embeddings"], sizes["layers"]
    )


class Memory:
    """Memory estimates from the sizes of a round's models."""

    def __init__(
        self,
        teachers: Mapping[str, ModelSize],
        student: ModelSize,
        phases: "Mapping[str, Phase]",
        resources: Mapping[str, Any],
    ) -> None:
        self.teachers, self.student, self.phases = teachers, student, phases
        self.resources = resources

    def check(self, adapt: Any, generate: GenerateParams, capture: CaptureParams) -> None:
        """Print the estimate of every stage.

        Raises:
            UserError: a stage does not fit even with short rows.
        """
        if isinstance(adapt, Hyperparameters):
            for key, size in self.teachers.items():
                self._report(f"adapt@{key}", [peak_memory(size, adapt, n) for n in _lengths(adapt)])
        for key, size in self.teachers.items():
            backend = generate.backend_of(key)
            if isinstance(backend, Transformers):
                self._report(f"generate@{key}", [answered(size, backend)])
            self._report(f"capture@{key}", [captured(size, capture)])
        for key, phase in self.phases.items():
            self._report(
                key.replace(".", "@", 1), [self.of_phase(phase, n) for n in _lengths(phase)]
            )

    def _report(self, stage: str, both: list[Parts]) -> None:
        """Print the memory for short and for the longest rows; refuse what cannot fit."""
        name = stage.split("@", maxsplit=1)[0]
        resources = self.resources.get(stage, self.resources.get(name)) or {}
        device = checkpoints.accelerator()
        room, elsewhere = available_on(device), bool(resources.get("gpus")) and device == "cpu"
        if resources.get("memory_gb") and device == "cpu":
            room = int(resources["memory_gb"] * GIB)
        figures = [f"{sum(parts.values()) / GIB:.1f}" for parts in both]
        longest = f", {figures[-1]} with rows of max_tokens" if len(both) > 1 else ""
        section, _, key = stage.partition("@")
        where = "params.yaml, " + (f"{section}.{key}" if section in PHASES else section)
        if room is None or elsewhere:
            say(f"{stage}: about {figures[0]} GiB with short rows{longest}")
            return
        check_memory(stage, both[0], room, where=where)
        fits = sum(both[-1].values()) <= room
        tight = "" if fits else f" ({room / GIB:.1f} GiB available: rows so long do not fit)"
        say(f"{stage}: about {figures[0]} GiB with short rows{longest}{tight}")

    def of_phase(self, phase: "Phase", tokens: int) -> Parts:
        """Return the memory of a phase with rows of `tokens`, for all workers together, by part."""
        size = self._start(phase)
        peers = getattr(phase, "peers", None)
        if peers:
            return _sum(
                peak_memory(_kept(size, peer.keep_layers), phase, tokens) for peer in peers
            ) | {PROGRAM: peak_memory(size, phase, tokens)[PROGRAM]}
        size = _kept(size, phase.keep_layers)
        pairs = phase.method == "dpo"  # type: ignore[attr-defined]
        rows = phase.rows_at_once * (1 + pairs)
        share = -(-rows // phase.workers) if phase.micro_batch_size is None else rows
        teachers = list(self._live_teachers(phase))
        one = peak_memory(size, phase, tokens, teachers, rows=share)
        return {part: phase.workers * amount for part, amount in one.items()}

    def _start(self, phase: "Phase") -> ModelSize:
        stage, _, name = phase.start.partition("/")
        if stage == "adapt":
            return self.teachers.get(name, self.student)
        if above := self._phase(stage, name):
            return _kept(self._start(above), above.keep_layers)
        return self.student

    def _phase(self, stage: str, name: str) -> "Phase | None":
        """Return the phase that writes models/<stage>/<name>, if any."""
        return self.phases.get(f"{stage}.{name.split('/', maxsplit=1)[0]}")

    def _live_teachers(self, phase: "Phase") -> Iterator[TeacherSize]:
        """Yield the teachers in memory during the phase."""
        stage, _, name = phase.targets.partition("/")[2].partition("/")
        if not phase.targets.startswith("models/"):
            return
        formats = phase.number_formats()
        wide = BYTES[formats.get("teachers", formats["student"])]
        for key in getattr(phase, "teachers", None) or (name,):
            if phase_of := self._phase(stage, key):
                yield TeacherSize(self._start(phase_of), wide)
            else:
                yield TeacherSize(self.teachers.get(key, self.student), wide)


def captured(size: ModelSize, capture: CaptureParams) -> Parts:
    """Return the memory of a forward pass of the teacher, with the logits of one chunk."""
    a_token = 4 * (4 * size.width + 3 * size.neurons)
    return {
        PROGRAM: PROGRAM_BYTES,
        WEIGHTS: size.inference_bytes(BYTES[resolve(capture.precision, checkpoints.accelerator())]),
        ACTIVATIONS: capture.threads * capture.batch_tokens * a_token,
        LOGITS: capture.threads * capture.chunk_tokens * size.vocabulary * 12,
    }


def answered(size: ModelSize, backend: Transformers) -> Parts:
    """Return the memory of generation: the KV cache of a batch, and the logits of one token."""
    wide, batch = BYTES[backend.number_format], backend.batching
    a_token = 2 * wide * size.layers * size.keys + 4 * (4 * size.width + 3 * size.neurons)
    one = {
        PROGRAM: PROGRAM_BYTES,
        WEIGHTS: size.inference_bytes(wide),
        ACTIVATIONS: backend.threads * batch.tokens * a_token,
        LOGITS: backend.threads * batch.rows * size.vocabulary * 12,
    }
    return {part: backend.workers * amount for part, amount in one.items()}


def _lengths(hyperparameters: Hyperparameters) -> tuple[int, int]:
    return min(SHORT, hyperparameters.max_tokens), hyperparameters.max_tokens


def _kept(size: ModelSize, layers: Layers | None) -> ModelSize:
    if layers is None:
        return size
    return size.with_layers(len(layer_positions(layers, size.layers, "train.<phase>.keep_layers")))


def _sum(parts: "Iterator[Parts]") -> Parts:
    total: Parts = {}
    for one in parts:
        for part, amount in one.items():
            total[part] = total.get(part, 0) + amount
    return total
