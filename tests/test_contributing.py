"""The worked examples of CONTRIBUTING.md are true: each is put where it says, and tried."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
ADD = re.compile(
    r"In `(?P<file>[^`]+)`, above `(?P<union>\w+)`:\n\n```python\n(?P<code>.*?)```", re.S
)
NEW = re.compile(r"New file `(?P<file>[^`]+)`:\n\n```python\n(?P<code>.*?)```", re.S)
TRY = re.compile(r"Try it:\n\n```python\n(?P<code>.*?)```", re.S)
SECTIONS = dict(re.findall(r"^## (Adding .*?)\n(.*?)(?=^## |\Z)", TEXT, re.S | re.M))
KINDS = ("filter", "divergence", "feature", "metric", "teacher", "kind of student", "stage")
IMPORTS = "\nfrom typing import Annotated\nfrom pydantic import Field\n\nfrom cohobate"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for package in ("cohobate", "tasks"):
        source = ROOT / package
        shutil.copytree(source, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    return tmp_path


def apply(project: Path, body: str) -> None:
    for example in ADD.finditer(body):
        path = project / example["file"]
        name = re.search(r"(?:class|import) (\w+)", example["code"])[1]
        before, union, after = path.read_text().partition(f"\n{example['union']} = ")
        assert union, f"{example['file']} has no {example['union']}"
        if after.startswith("Annotated["):
            after = re.sub(r"Annotated\[\s*", f"Annotated[{name} | ", after, count=1)
        elif after.startswith("("):
            after = f"({name}, {after[1:]}"
        else:  # one kind so far
            first = re.match(r"\w+", after)[0]
            after = f'Annotated[{first} | {name}, Field(discriminator="type")]\n'
            before = before.replace("\nfrom cohobate", IMPORTS, 1)
        path.write_text(f"{before}\n{example['code']}\n\n{union}{after}")
    for example in NEW.finditer(body):
        (project / example["file"]).parent.mkdir(exist_ok=True)
        (project / example["file"]).write_text(example["code"])


def test_every_kind_of_addition_has_its_example() -> None:
    assert set(SECTIONS) == {f"Adding a {kind}" for kind in KINDS}
    assert all(TRY.search(body) for body in SECTIONS.values())


@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_works_as_written(title: str, project: Path) -> None:
    apply(project, SECTIONS[title])
    done = subprocess.run(
        [sys.executable, "-c", TRY.search(SECTIONS[title])["code"]],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_new_stages_block_fits_into_dvc_yaml(project: Path) -> None:
    block = re.search(r"```yaml\n(.*?)```", SECTIONS["Adding a stage"], re.S)[1]
    whole = (project / "dvc.yaml").read_text()
    head, stages, rest = whole.partition("stages:\n")
    (project / "dvc.yaml").write_text(head + stages + block + "\n" + rest)
    added = YAML(typ="safe").load(project / "dvc.yaml")["stages"]["census"]
    assert added["params"] == ["census"] and "data/code/census.json" in added["deps"]
