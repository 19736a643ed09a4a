"""What fits is told for each device, with the smallest change where something does not."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from cohobate.backends.settings import GenerateParams
from cohobate.evaluation.answer_logprobs import CHUNK
from cohobate.methods.teacher_tuning import NoTuning, Tuning
from cohobate.methods.train import Method
from cohobate.models import checkpoints
from cohobate.models.model_size import ModelSize
from cohobate.params import validated
from cohobate.teachers.signal_store.settings import CaptureParams
from cohobate.training.memory import PARTS
from tasks.preflight import devices
from tasks.preflight.devices import Device, device_of
from tasks.preflight.memory import Memory
from tasks.preflight.memory_table import table_lines, verdict
from tasks.preflight.smallest_change import as_settings, smallest_change
from tasks.preflight.stage_memory import StageMemory

ROWS = "data/curriculum/train.jsonl"
KD = {
    "method": "kd", "from": "init_student", "rows": ROWS, "targets": "models/adapt/main",
    "terms": [{"type": "forward_kl"}], "updates": 10, "batch_size": 32, "precision": "bfloat16",
}  # fmt: skip
BIG = ModelSize(7_000_000_000, 1_000_000_000, 32, 4096, 14336, 32, 128_000, 1024, 4096)
SMALL = ModelSize(500_000_000, 130_000_000, 24, 896, 4864, 14, 128_000, 128, 896)
GIB = 1 << 30


def phase(**fields: Any) -> Any:
    return validated(Method, KD | fields, "train.kd")


def stages(
    kd: Any,
    available: int | None,
    *,
    count: int | None = None,
    adapt: Any = None,
    document: Mapping[str, Any] = MappingProxyType({}),
) -> dict:
    device = Device("cuda", available, count)
    memory = Memory({"main": BIG}, SMALL, {"train.kd": kd}, lambda stage, workers: device)
    tuning = adapt or NoTuning(type="none")
    every = memory.stages({"main": tuning}, GenerateParams(), CaptureParams(), document)
    return {one.stage: one for one in every}


def test_each_stage_has_a_row_with_its_parts_and_its_total() -> None:
    every = stages(phase(), 80 * GIB)
    head, *lines = table_lines([*every.values()])
    assert all(part in head for part in PARTS)
    assert [line.split()[0] for line in lines if line[0] != " "] == [*every]
    assert f"{every['train@kd'].total / GIB:.1f}" in lines[3]
    assert [*table_lines([])] == []


def test_an_unknown_device_refuses_nothing() -> None:
    every = stages(phase(), None)
    assert all(one.fits is None for one in every.values())
    every["train@kd"].check()
    assert "unknown" in [*table_lines([*every.values()])][-1]


def test_fewer_rows_at_once_come_before_another_training() -> None:
    (kd,) = [one for one in stages(phase(), 40 * GIB).values() if one.stage == "train@kd"]
    assert kd.fits is False
    assert kd.fix.startswith("--set train.kd.micro_batch_size=")
    assert "such, fix: cohobate run --set" in verdict(kd)
    rows = int(kd.fix.rpartition("=")[2])
    assert stages(phase(micro_batch_size=rows), 40 * GIB)["train@kd"].fits
    assert not stages(phase(micro_batch_size=2 * rows), 40 * GIB)["train@kd"].fits


def test_models_that_are_compared_are_in_memory_together() -> None:
    every = stages(phase(), 80 * GIB)
    assert [*every] == [
        "adapt@main", "generate@main", "capture@main", "train@kd", "evaluate", "challenge"
    ]  # fmt: skip
    both = BIG.parameters + SMALL.parameters
    assert every["evaluate"].parts["weights"] == 2 * both
    assert every["challenge"].parts["weights"] == 4 * SMALL.parameters
    assert every["adapt@main"].parts["weights"] == 2 * BIG.parameters
    # KV cache and hidden states of a batch, logits of a token of each row
    cache = 4 * BIG.layers * BIG.keys
    assert every["evaluate"].parts["activations"] > 8192 * cache
    assert every["evaluate"].parts["logits"] >= 24 * CHUNK * BIG.vocabulary


def test_a_smaller_batch_is_the_fix_of_frozen_models() -> None:
    room = stages(phase(), 1 << 60)["evaluate"].total - GIB
    evaluate = stages(phase(), room)["evaluate"]
    assert evaluate.fix.startswith("--set 'evaluate.batching={tokens: ")
    little = 29 * GIB // 2
    capture = stages(phase(), little)["capture@main"]
    assert capture.fix.startswith("--set capture.batch_tokens=")
    generate = stages(phase(), little)["generate@main"]
    assert generate.fix.startswith("--set 'generate.backend={type: transformers, batching: {tok")
    # a teacher that is larger than the device: its answers alone, or none
    every = stages(phase(), 8 * GIB)
    assert every["evaluate"].fix == "--set evaluate.teacher_figures=answers"
    assert every["adapt@main"].fix == "--set adapt.dev_rows=0"
    answers = {"teacher_figures": "answers"}
    assert stages(phase(), 8 * GIB, document={"evaluate": answers})["evaluate"].fits
    # vLLM has one model at a time, and its own share of the GPU
    by_vllm = {"evaluate": {"backend": {"type": "vllm", "gpus": 2}}}
    parts = stages(phase(), 80 * GIB, document=by_vllm)["evaluate"].parts
    assert parts["weights"] == 2 * (BIG.parameters + SMALL.parameters)


def test_a_live_teacher_that_is_too_large_is_stored() -> None:
    kd = stages(phase(batch_size=1, max_tokens=256), 14 * GIB)["train@kd"]
    assert kd.fix == "--set train.kd.targets=data/capture/main"
    # a feature needs a live teacher: nothing helps
    features = [{"type": "forward_kl"}, {"type": "hidden_mse", "layers": "last"}]
    kd = stages(phase(batch_size=1, max_tokens=256, terms=features), 14 * GIB)["train@kd"]
    assert not kd.fix and "larger device" in verdict(kd)


def test_several_changes_where_no_single_one_is_enough() -> None:
    kd = phase(batch_size=32, max_tokens=2048)
    change = smallest_change(kd, lambda p: p.adapter.type == "lora" and p.rows_at_once <= 8)
    assert change and [*change] == ["micro_batch_size", "adapter"]
    settings = "--set train.kd.micro_batch_size=1 --set 'train.kd.adapter={type: lora, base_"
    assert as_settings("train.kd", change).startswith(settings)
    assert smallest_change(kd, lambda p: False) is None
    assert smallest_change(kd, lambda p: p.workers == 4, 8) == {"workers": 4}


def test_a_tuning_has_its_change_too() -> None:
    tuning = validated(Tuning, {"type": "sft", "updates": 1, "batch_size": 8}, "adapt")
    total = stages(phase(), 1 << 60, adapt=tuning)["adapt@main"].total
    adapt = stages(phase(), total - GIB, adapt=tuning)["adapt@main"]
    assert adapt.fix == "--set adapt.micro_batch_size=4"
    lines = [*table_lines([dataclasses.replace(adapt, fix="")])]
    assert "short rows fit" in lines[-1]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "cpu")
    monkeypatch.setattr(devices, "gpus_of_cluster", dict)
    monkeypatch.setattr(devices, "gpus_of_this_machine", list)


def test_a_stage_with_a_gpu_has_the_gpus_memory(no_gpu: None, monkeypatch) -> None:
    monkeypatch.setattr(devices, "available_on", lambda device: 1 << 50)
    on_gpu = {"train": {"gpus": 1}}
    assert device_of("train@kd", on_gpu) == Device("cuda", None, None)
    assert device_of("capture@main", on_gpu) == Device("cpu", 1 << 50)
    told = {"train@kd": {"gpus": 0.5, "gpu_memory_gb": 48}}
    assert device_of("train@kd", told).available == 24 * GIB
    # the driver sees what Ray hides from torch
    monkeypatch.setattr(devices, "gpus_of_this_machine", lambda: [70 * GIB, 60 * GIB])
    assert device_of("train@kd", on_gpu).available == 60 * GIB
    # the cluster's GPUs by their name, the smallest kind
    monkeypatch.setattr(devices, "gpus_of_cluster", lambda: {"H100": 8, "L4": 2})
    assert device_of("train@kd", on_gpu) == Device("cuda", 24 * GIB, 10)


def test_workers_on_a_cpu_share_its_memory(no_gpu: None, monkeypatch) -> None:
    monkeypatch.setattr(devices, "available_on", lambda device: 64 * GIB)
    assert device_of("train@kd", {}, 4) == Device("cpu", 16 * GIB)
    assert device_of("train@kd", {"train": {"memory_gb": 32}}, 4).available == 8 * GIB
    # Ray Train gives each worker a GPU where there are any
    monkeypatch.setattr(devices, "gpus_of_cluster", lambda: {"H100": 8})
    assert device_of("train@kd", {}, 4) == Device("cuda", 80 * GIB, 8)


def test_a_stage_that_cannot_fit_is_refused_with_its_fix() -> None:
    short = {"weights": 20 * GIB}
    stage = StageMemory("train@kd", short, short, Device("cuda", 10 * GIB), fix="--set a=1")
    with pytest.raises(Exception, match=r"20\.0 GiB of memory, 10\.0 GiB available") as caught:
        stage.check()
    assert caught.value.fix == "cohobate run --set a=1"
    assert caught.value.where == "params.yaml, train.kd"
