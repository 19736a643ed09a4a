"""benchmarks/gpu.py runs whole on a CPU; a part that fails leaves the others their figures."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from benchmarks import gpu


def test_it_runs_whole_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert gpu.main(["--small", "--here", "--out", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [*parts] == [*gpu.PARTS]
    # vLLM is not there, and what comes before it has figures
    assert "error" in parts.pop("generation by vLLM")
    assert not [part for part, figures in parts.items() if "error" in figures]
    assert parts["KD step"]["tokens_per_second"] > 0
    assert "KD step, FSDP of one rank" in capsys.readouterr().out


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu.main(["--small", "--minutes", "0", "--only", "generation", "--out", str(out)])
    assert json.loads(out.read_text())["parts"] == {"generation": {"error": "no time left"}}


def test_each_part_is_a_process_with_a_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    gpu.main(["--small", "--only", "dense peak", "--out", str(out)])
    assert json.loads(out.read_text())["parts"]["dense peak"]["tflops"] > 0
    monkeypatch.setattr(gpu, "LIMIT", 0.05)
    gpu.main(["--small", "--only", "capture", "KD step", "--out", str(out)])
    parts = json.loads(out.read_text())["parts"]
    assert all("ended with more than 0 s" in figures["error"] for figures in parts.values())
    assert "KD step" in capsys.readouterr().out


def test_what_there_is_is_printed_where_it_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(setting: gpu.Setting) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    monkeypatch.setitem(gpu.PARTS, "capture", stop)
    out = tmp_path / "gpu.json"
    gpu.main(["--small", "--here", "--only", "dense peak", "capture", "--out", str(out)])
    printed = capsys.readouterr()
    assert "stopped" in printed.err
    assert "dense peak" in printed.out and "capture" not in printed.out
