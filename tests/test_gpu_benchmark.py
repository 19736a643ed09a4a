"""benchmarks/gpu.py runs whole on a CPU; a part that fails leaves the others their figures."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu


def test_it_runs_whole_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")]) == 0
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [*parts] == [*gpu.PARTS]
    # vLLM is not there, and what comes before it has figures
    assert "error" in parts.pop("generation by vLLM")
    assert not [part for part, figures in parts.items() if "error" in figures]
    assert parts["KD step"]["tokens_per_second"] > 0
    assert "KD step, FSDP of one rank" in capsys.readouterr().out


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    gpu.main(["--tiny", "--minutes", "0", "--only", "generation", "--out", str(out)])
    assert json.loads(out.read_text())["parts"] == {"generation": {"error": "no time left"}}
