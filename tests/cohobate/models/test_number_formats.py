"""Number formats: what each kind of device is given, and that a machine stays with its choice."""

import json
from pathlib import Path

import pytest
import torch

from cohobate.errors import UserError
from cohobate.models import checkpoints, number_formats
from cohobate.models.number_formats import BYTES, by_flags, native, resolve

ALL_FLAGS = dict.fromkeys(("avx2", "avx512_f", "avx512_bf16", "amx_bf16"), True)
CLOSE = {"float32": 100.0, "bfloat16": 120.0}


@pytest.fixture(autouse=True)
def plain_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (number_formats.FORCED, "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Pretend to be a processor with these flags on this system, with these measured figures."""

    def pretend(flags: dict[str, bool], system: str = "Linux", figures=CLOSE) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
        monkeypatch.setattr(number_formats.platform, "system", lambda: system)
        monkeypatch.setattr(number_formats, "measure", lambda: dict(figures))

    return pretend


@pytest.mark.parametrize(
    ("flags", "system", "expected"),
    [
        (ALL_FLAGS, "Linux", "bfloat16"),
        (ALL_FLAGS | {"amx_bf16": False}, "Linux", "bfloat16"),
        ({"avx2": True, "avx512_f": True}, "Linux", "float32"),
        ({"avx2": True}, "Linux", "float32"),
        ({"avx2": True}, "Windows", "float32"),
        ({}, "Linux", "float32"),
        ({"neon": True, "bf16": True}, "Linux", "bfloat16"),
        ({"neon": True, "bf16": True, "sve_bf16": True}, "Linux", "bfloat16"),
        ({"neon": True, "bf16": False}, "Linux", "float32"),
        ({"neon": True, "bf16": True}, "Darwin", "float32"),
        ({"avx2": True, "avx512_f": True}, "Darwin", "float32"),
    ],
)
def test_a_processor_is_judged_by_its_flags(processor, flags, system, expected) -> None:
    processor(flags, system)
    assert resolve("auto", "cpu") == expected


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ([(7, 5)], "float32"),
        ([(8, 0)], "bfloat16"),
        ([(9, 0), (7, 0)], "float32"),
        ([(12, 0)], "bfloat16"),
        ([], "bfloat16"),
    ],
)
def test_a_gpu_is_judged_by_its_compute_capability(monkeypatch, capabilities, expected) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda n: capabilities[n])
    assert resolve("auto", "cuda") == resolve("auto", "cuda:0") == expected


@pytest.mark.parametrize(("new", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_apples_gpu_is_judged_by_the_system(monkeypatch, new, expected) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: new)
    assert resolve("auto", "mps") == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("AVX2", "float32"),
        ("AVX2_VNNI", "float32"),
        ("avx512_core", "float32"),
        ("AVX512_CORE_BF16", "bfloat16"),
        ("AVX512_CORE_AMX", "bfloat16"),
        ("ALL", "bfloat16"),
    ],
)
def test_a_limit_on_onednn_counts(processor, monkeypatch, limit, expected) -> None:
    processor(ALL_FLAGS)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert resolve("auto", "cpu") == expected


def test_params_and_the_environment_force_a_format(processor, monkeypatch) -> None:
    processor({"avx2": True})
    assert resolve("bfloat16", "cpu") == "bfloat16"
    monkeypatch.setenv(number_formats.FORCED, "bfloat16")
    assert resolve("auto", "cpu") == "bfloat16"
    assert resolve("float32", "cpu") == "float32"
    monkeypatch.setenv(number_formats.FORCED, "fp8")
    with pytest.raises(UserError, match="fp8"):
        resolve("auto", "cuda")


def test_a_measurement_overrules_flags_only_where_they_are_in_doubt_and_it_is_clear(
    processor,
) -> None:
    doubtful = {"avx2": True, "avx512_f": True, "avx512_bf16": True}
    processor(doubtful, figures={"float32": 140.0, "bfloat16": 100.0})
    assert native("cpu").number_format == "bfloat16"
    files = list(number_formats.cache.folder().glob("number-formats/*.json"))
    assert len(files) == 1
    files[0].unlink()
    processor(doubtful, figures={"float32": 160.0, "bfloat16": 100.0})
    assert native("cpu").number_format == "float32"
    assert "1.6 times" in native("cpu").reason
    files[0].unlink()
    processor(ALL_FLAGS, figures={"float32": 900.0, "bfloat16": 1.0})
    assert native("cpu").number_format == "bfloat16"
    assert not files[0].exists()  # nothing was measured


def test_a_machine_measures_once_and_keeps_to_it(processor, monkeypatch) -> None:
    processor({"avx512_f": True}, figures={"float32": 100.0, "bfloat16": 20.0})
    assert resolve("auto", "cpu") == "float32"
    processor({"avx512_f": True}, figures={"float32": 20.0, "bfloat16": 100.0})
    assert resolve("auto", "cpu") == "float32"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")  # that is another machine, as it were
    assert resolve("auto", "cpu") == "bfloat16"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"float32": 1}', '{"float32": "x", "bfloat16": 1}',
             '{"float32": NaN, "bfloat16": 1}', '{"float32": 0, "bfloat16": 1}', '{"float32":']
)  # fmt: skip
def test_malformed_figures_are_measured_anew(processor, text) -> None:
    processor({"avx512_f": True})
    resolve("auto", "cpu")
    (file,) = number_formats.cache.folder().glob("number-formats/*.json")
    file.write_text(text)
    assert resolve("auto", "cpu") == "float32"
    assert json.loads(file.read_text()) == CLOSE


def test_a_cache_that_cannot_be_written_is_no_error(processor, project, monkeypatch) -> None:
    processor({"avx512_f": True})
    (project / "file").write_text("")
    monkeypatch.setenv("COHOBATE_CACHE", str(project / "file" / "cache"))
    assert resolve("auto", "cpu") == "float32"


def test_the_measurement_is_short_and_of_both_formats() -> None:
    speeds = number_formats.gflops()
    assert set(speeds) == set(BYTES)
    assert all(speed > 0 for speed in speeds.values())
    assert number_formats.gflops() == speeds


def test_unknown_flags_suggest_float32() -> None:
    assert by_flags(frozenset(), "Linux").number_format == "float32"


@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
def test_a_model_is_loaded_in_the_native_format(monkeypatch, checkpoint, forced) -> None:
    monkeypatch.setenv(number_formats.FORCED, forced)
    model, _ = checkpoints.load(checkpoint, precision="auto")
    assert model.dtype is getattr(torch, forced)
