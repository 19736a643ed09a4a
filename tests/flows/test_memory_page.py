"""The tables of docs/memory.md are what its commands print."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.tiny_project import ROOT

PAGE = ROOT / "docs" / "memory.md"
CASE = re.compile(r"```bash\n(cohobate fits [^\n]+)\n```\n\n```text\n(.*?)```", re.S)


def output_of(command: str) -> str:
    """Print what a command of the page prints, in a project with the default params."""
    return CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False).stdout


@pytest.mark.parametrize("number", range(3))
def test_a_case_on_paper_is_what_the_command_prints(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs" / "shapes", tmp_path / "docs" / "shapes")
    monkeypatch.chdir(tmp_path)
    command, table = CASE.findall(PAGE.read_text())[number]
    assert output_of(command) == table
    # what a case is given for fits; what does not is said in the text
    rows = [line for line in table.splitlines()[1:] if line.startswith("train@")]
    assert rows and not any(line.lstrip().startswith("train@") and ":" in line for line in rows)
