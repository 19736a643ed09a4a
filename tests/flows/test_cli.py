"""The `cohobate` command as a person types it: help, exit codes, errors in three lines."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny_project import ROOT, run

COMMANDS = ["run", "data", "status", "report", "ui", "params", "recipes", "doctor"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example_and_speaks_json(command: str) -> None:
    done = run(ROOT, "cohobate", command, "--help", COLUMNS="120")
    assert done.returncode == 0
    assert f"cohobate {command}" in done.stdout and "Example" in done.stdout
    assert "--json" in done.stdout


def test_an_unknown_option_is_a_usage_error(folder: Path) -> None:
    assert run(folder, "cohobate", "run", "--stgae", "x").returncode == 2


def test_a_mistyped_param_is_a_usage_error_that_names_the_nearest(folder: Path) -> None:
    done = run(folder, "cohobate", "run", "--set", "train.kd.updatse=3")
    assert done.returncode == 2
    assert "did you mean 'updates'" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "params.yaml").read_bytes() == (ROOT / "params.yaml").read_bytes()


def test_debug_shows_the_traceback(folder: Path) -> None:
    done = run(folder, "cohobate", "--debug", "run", "--set", "nothing=3")
    assert done.returncode != 0 and "Traceback" in done.stderr


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "cohobate", "status")
    assert done.returncode == 1 and "dvc.yaml" in done.stderr


def test_params_prints_a_schema_that_explains_every_section(folder: Path) -> None:
    schema = json.loads(run(folder, "cohobate", "params", "--schema").stdout)
    assert set(schema["required"]) >= {"collect", "train", "evaluate", "seeds"}
    assert schema["additionalProperties"] is False
    assert "Peak learning rate" in json.dumps(schema)


def test_params_in_json_are_what_the_file_says(folder: Path) -> None:
    assert json.loads(run(folder, "cohobate", "params", "--json").stdout)["seeds"] == [1]


def test_a_report_before_any_round_says_what_to_do(folder: Path) -> None:
    done = run(folder, "cohobate", "report")
    assert done.returncode == 1 and "cohobate run" in done.stderr


def test_doctor_finds_what_is_wrong_and_how_to_fix_it(folder: Path) -> None:
    (folder / "params.yaml").write_text("seed: [1]\n")
    done = run(folder, "cohobate", "doctor", "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 1
    wrong = {finding["what"] for finding in findings if not finding["ok"]}
    assert any("did you mean 'seeds'" in what for what in wrong)
    assert all(finding["fix"] for finding in findings if not finding["ok"])


@pytest.mark.parametrize("command", [["cohobate", "params"], ["python", "-m", "tasks", "nothing"]])
def test_a_locale_of_another_encoding_reads_the_project_as_utf_8(
    folder: Path, command: list[str]
) -> None:
    with (folder / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("# für alle → 模型\n")
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(folder, *command, PYTHONPATH=str(ROOT), **ascii_alone)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if command[0] == "cohobate" else 1)
