"""Every path that a text of the project names is there."""

import re

import pytest

from tests.tiny_project import ROOT

TEXTS = [
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    ".ci/run",
    "docs/signal-store.md",
    *(
        path.relative_to(ROOT).as_posix()
        for folder in ("infra", "recipes", "benchmarks", "cohobate", "tasks", "flows", "docs")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".yaml", ".md", ".sh", "") and path.is_file()
        if path.name != "upgrade.py"  # names what an earlier version had
    ),
]
FOLDERS = "cohobate|tasks|flows|infra|recipes|benchmarks|tests|docs"
NAMED = re.compile(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]+|[A-Z]{{4,}}\.md|Makefile|LICENSE)")
WRITTEN_LATER = {
    "cohobate/backends/canned.py",  # examples of CONTRIBUTING.md
    "tasks/census",
    "tasks/census/stage.py",
    "infra/.env",  # the user's own, made of compose.env.example
    "benchmarks/overhead.json",
}


@pytest.mark.parametrize("text", dict.fromkeys(TEXTS))
def test_the_paths_that_it_names_exist(text: str) -> None:
    named = {name.rstrip("./") for name in NAMED.findall((ROOT / text).read_text("utf-8"))}
    absent = sorted(
        name
        for name in named - WRITTEN_LATER
        if not (ROOT / name).exists() and not [*ROOT.glob(f"{name}*")]
    )
    assert absent == []


def test_the_licence_is_the_one_that_pyproject_names() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")[:200]
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text("utf-8")
