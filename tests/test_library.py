"""The examples of docs/library.md run as written, in a folder with a tiny model."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_models
from tests.tiny_project import ROOT

TEXT = (ROOT / "docs/library.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n.*?```python\n(.*?)```", TEXT, re.S | re.M))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    tokenizer = tiny_models.make_tokenizer()
    tiny_models.make_model(tokenizer).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_of_the_library_runs_as_written(title: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXAMPLES[title]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
