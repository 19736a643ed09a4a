"""Memory of each training phase and of each stage of a teacher, per device, before anything runs.

Row lengths are not known yet. A phase that does not fit even with short rows is refused here. One
that does not fit with rows of `max_tokens` is told with the smallest change that would fit, and is
refused once its rows are known (cohobate/training/trainer.py). Nothing is recorded: these are facts
of the machine.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cohobate.backends.settings import GenerateParams
from cohobate.backends.transformers import Transformers
from cohobate.backends.vllm import Vllm
from cohobate.evaluation.answering import Answering
from cohobate.models.layer_choice import Layers, layer_positions
from cohobate.models.model_info import ModelInfo
from cohobate.models.model_size import ModelSize
from cohobate.models.number_formats import BYTES, resolve
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher_workers import TeacherWorkers
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory import PROGRAM, Placement, TeacherSize, peak_memory
from tasks.preflight.devices import Device
from tasks.preflight.embedders import KINDS
from tasks.preflight.inference_memory import (
    Parts,
    answering_of,
    of_capture,
    of_evaluation,
    of_generation,
    of_vllm,
)
from tasks.preflight.smallest_change import (
    Training,
    as_settings,
    batching_of,
    flow,
    smallest_change,
    with_tokens,
)
from tasks.preflight.stage_memory import StageMemory, with_smaller_batch

if TYPE_CHECKING:
    from cohobate.methods.phase import Phase

SHORT = 32
"""Tokens of a short row."""
DeviceOf = Callable[[str, int], Device]
"""The device of a stage, by its address and its number of workers."""


def size_of(outline: ModelInfo, record: Mapping[str, Any] | None = None) -> ModelSize:
    """Return the size of a model, or of the student made from it by `record`."""
    sizes = record or outline.to_json()
    size = ModelSize.of(
        outline.config, sizes["parameters"], sizes["parameters_of_embeddings"], sizes["layers"]
    )
    return replace(size, generates=sizes.get("type") not in ("classifier", *KINDS))


class Memory:
    """Memory of a round's stages, from the sizes of its models."""

    def __init__(
        self,
        teachers: Mapping[str, ModelSize],
        student: ModelSize,
        phases: "Mapping[str, Phase]",
        device_of: DeviceOf,
    ) -> None:
        self.teachers, self.student, self.phases = teachers, student, phases
        self.device_of = device_of

    def stages(
        self,
        tunings: Mapping[str, Any],
        generate: GenerateParams,
        capture: CaptureParams,
        document: Mapping[str, Any],
    ) -> Iterator[StageMemory]:
        """Yield the memory of every stage that a model runs in, in the order of the round.

        Args:
            tunings: how each teacher is tuned.
            generate: its section.
            capture: its section.
            document: params.yaml, for the sections of stages that compare models.
        """
        for key, size in self.teachers.items():
            adapt = tunings[key]
            if isinstance(adapt, Hyperparameters):
                yield self._of_tuning(f"adapt@{key}", size, adapt)
            elif adapt.dev_rows:
                yield self._of_dev_answers(f"adapt@{key}", size, adapt)
            backend, stage = generate.backend_of(key), f"generate@{key}"
            if isinstance(backend, Transformers):
                estimate = self._of_generation(stage, size, backend)
                # `backends` of single teachers go before what the fix would set
                yield replace(estimate, fix="") if key in generate.backends else estimate
            elif isinstance(backend, Vllm):
                device = self.device_of(stage, 1)
                parts = of_vllm(size, backend, device)
                yield StageMemory(stage, parts, parts, device)
            if copies := _copies(capture.teacher_workers):
                yield self._of_capture(f"capture@{key}", size, capture, copies)
        for key, phase in self.phases.items():
            yield self._of_stage(key, phase)
        yield from self._of_comparisons(document)

    def _of_generation(self, stage: str, size: ModelSize, backend: Transformers) -> StageMemory:
        device = self.device_of(stage, 1)

        def parts(tokens: int) -> Parts:
            return of_generation(size, with_tokens(backend, tokens), device)

        most = backend.batching.tokens
        estimate = StageMemory(stage, parts(most), parts(most), device)
        written = backend.model_dump(mode="json", exclude_unset=True) | {"type": "transformers"}
        return with_smaller_batch(
            estimate, most, parts,
            lambda n: {"backend": flow(written | {"batching": batching_of(backend, n)})},
        )  # fmt: skip

    def _of_capture(
        self, stage: str, size: ModelSize, capture: CaptureParams, copies: int
    ) -> StageMemory:
        """Return the memory of so many copies of a teacher that is captured."""
        device = self.device_of(stage, 1)

        def changes(tokens: int) -> dict[str, int]:
            return {"batch_tokens": tokens, "chunk_tokens": min(capture.chunk_tokens, tokens)}

        def parts(tokens: int) -> Parts:
            one = of_capture(size, capture.model_copy(update=changes(tokens)), device)
            return _sum([one] * copies)

        now = _sum([of_capture(size, capture, device)] * copies)
        estimate = StageMemory(stage, now, now, device)
        return with_smaller_batch(estimate, capture.batch_tokens, parts, changes)

    def _of_comparisons(self, document: Mapping[str, Any]) -> Iterator[StageMemory]:
        """Yield the memory of evaluate and challenge."""
        students = [_kept(self._start(one), one.keep_layers) for one in self.phases.values()]
        student = max([self.student, *students], key=lambda size: size.parameters)
        evaluate = document.get("evaluate") or {}
        teacher = self.teachers.get(evaluate.get("teacher") or "main")
        loaded = teacher if evaluate.get("teacher_figures") != "answers" else None
        # the teacher stays, students come one by one; champion and challenger are both of them
        evaluated = self._of_answering("evaluate", [*filter(None, [loaded]), student], document)
        if loaded and evaluated.fits is False and not evaluated.fix:
            alone = self._of_answering("evaluate", [student], document)
            if alone.fits:
                fix = as_settings("evaluate", {"teacher_figures": "answers"})
                evaluated = replace(evaluated, fix=fix)
        yield evaluated
        yield self._of_answering("challenge", [student, student], document)

    def _of_answering(
        self, stage: str, sizes: list[ModelSize], document: Mapping[str, Any]
    ) -> StageMemory:
        """Return the memory of a stage that compares models."""
        answering, device = answering_of(document, stage), self.device_of(stage, 1)

        def parts(tokens: int, rows_of: int | None = None) -> Parts:
            return of_evaluation(sizes, with_tokens(answering, tokens), device, rows_of)

        most = answering.batching.tokens
        estimate = StageMemory(stage, parts(most), parts(most, SHORT), device)
        return with_smaller_batch(
            estimate, most, parts, lambda n: {"batching": flow(batching_of(answering, n))}
        )

    def _of_dev_answers(self, stage: str, size: ModelSize, adapt: Any) -> StageMemory:
        """Return the memory of a teacher that is not tuned, and answers dev rows."""
        device = self.device_of(stage, 1)
        if isinstance(adapt.dev_backend, Vllm):
            parts = of_vllm(size, adapt.dev_backend, device)
            return StageMemory(stage, parts, parts, device)
        answering = Answering(precision=adapt.precision, threads=adapt.threads)
        long, short = (of_evaluation([size], answering, device, n) for n in (None, SHORT))
        estimate = StageMemory(stage, long, short, device)
        fix = "" if estimate.fits is not False else as_settings("adapt", {"dev_rows": 0})
        return replace(estimate, fix=fix)

    def of_phase(self, phase: "Phase", tokens: int, device: Device) -> Parts:
        """Return the memory of one worker of a phase with rows of `tokens`, by part."""
        size, placement = self._start(phase), _placement(phase, device)
        if peers := getattr(phase, "peers", None):
            sizes = [_kept(size, peer.keep_layers) for peer in peers]
            each = [peak_memory(one, phase, tokens, placement=placement) for one in sizes]
            return _sum(each) | {PROGRAM: each[0][PROGRAM]}
        return peak_memory(
            _kept(size, phase.keep_layers),
            phase,
            tokens,
            [*self._live_teachers(phase, device)],
            placement=placement,
            rows_each=1 + (phase.method in ("dpo", "embed")),  # type: ignore[attr-defined]
        )

    def _of_tuning(self, stage: str, size: ModelSize, adapt: Hyperparameters) -> StageMemory:
        def parts(other: Hyperparameters, tokens: int, device: Device) -> Parts:
            return peak_memory(size, other, tokens, placement=Placement(device.kind))

        return self._with_fix(stage, "adapt", adapt, parts)

    def _of_stage(self, key: str, phase: "Phase") -> StageMemory:
        return self._with_fix(key.replace(".", "@", 1), key, phase, self.of_phase)

    def _with_fix(
        self,
        stage: str,
        section: str,
        training: Training,
        parts: Callable[[Training, int, Device], Parts],
    ) -> StageMemory:
        """Return the memory of a training, and the smallest change with which it fits."""
        workers = getattr(training, "workers", 1)
        device, tokens = self.device_of(stage, workers), training.max_tokens
        long, short = (parts(training, n, device) for n in (tokens, min(SHORT, tokens)))
        estimate = StageMemory(stage, long, short, device, workers)
        if estimate.fits is not False:
            return estimate

        def fits(other: Training) -> bool:
            of_other = self.device_of(stage, getattr(other, "workers", 1))
            total = sum(parts(other, tokens, of_other).values())
            return of_other.available is not None and total <= of_other.available

        changes = smallest_change(training, fits, device.count)
        return replace(estimate, fix=as_settings(section, changes) if changes else "")

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

    def _live_teachers(self, phase: "Phase", device: Device) -> Iterator[TeacherSize]:
        """Yield the teachers in memory during the phase."""
        stage, _, name = phase.targets.partition("/")[2].partition("/")
        if not phase.targets.startswith("models/"):
            return
        copies = _copies(getattr(phase, "teacher_workers", None))
        number = BYTES[resolve(getattr(phase, "teacher_precision", "auto"), device.kind)]
        for key in getattr(phase, "teachers", None) or (name,):
            if phase_of := self._phase(stage, key):
                yield from [TeacherSize(self._start(phase_of), number)] * copies
            elif stage != "adapt" or key in self.teachers:  # a served teacher is elsewhere
                yield from [TeacherSize(self.teachers.get(key, self.student), number)] * copies


def _copies(workers: TeacherWorkers | None) -> int:
    """Return how many copies of a teacher a stage's own machine holds: none where they have GPUs
    of their own."""
    if workers is None:
        return 1
    return 0 if workers.gpus_each else workers.workers


def _placement(phase: "Phase", device: Device) -> Placement:
    return Placement(device.kind, phase.workers)


def _kept(size: ModelSize, layers: Layers | None) -> ModelSize:
    if layers is None:
        return size
    return size.with_layers(len(layer_positions(layers, size.layers, "train.<phase>.keep_layers")))


def _sum(parts: list[Parts]) -> Parts:
    return {part: sum(one[part] for one in parts) for part in parts[0]}
