"""Fingerprints of code: what a stage runs counts, what it says of itself does not."""

from pathlib import Path

import pytest

from cohobate.code_fingerprint import fingerprints

STAGE = '''"""A stage."""
from typing import TYPE_CHECKING

from cohobate.data import rows

if TYPE_CHECKING:
    from cohobate.data import types


def run(size: int = 3) -> str:
    """Run it."""
    from cohobate import late

    return f"{rows.read()} {late.THING}"  # why
'''
FILES = {
    "cohobate/__init__.py": "",
    "cohobate/late.py": "THING = 1\n",
    "cohobate/unused.py": "X = 1\n",
    "cohobate/data/__init__.py": "",
    "cohobate/data/rows.py": "def read():\n    return 1\n",
    "cohobate/data/types.py": "Y = 1\n",
    "cohobate/data/words.txt": "one two\n",
    "tasks/__init__.py": "",
    "tasks/census/__init__.py": "",
    "tasks/census/stage.py": STAGE,
}
MODULES = {
    "cohobate", "cohobate.data", "cohobate.data.rows", "cohobate.late", "cohobate/data/words.txt",
    "tasks", "tasks.census", "tasks.census.stage",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_all_that_a_stage_imports_is_its_code_and_nothing_else(root: Path) -> None:
    assert set(fingerprints("tasks.census.stage", root)) == MODULES


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A stage."""', '"""A stage, described otherwise."""'),
        ('    """Run it."""\n', ""),
        ("  # why", "  # for another reason"),
        ("size: int = 3", "size: int = (\n        3\n    )"),
        ("    from cohobate.data import types", "    from cohobate import unused"),
    ],
)
def test_comments_docstrings_layout_and_types_do_not_count(root: Path, old: str, new: str) -> None:
    before = fingerprints("tasks.census.stage", root)
    path = root / "tasks/census/stage.py"
    assert old in STAGE
    path.write_text(STAGE.replace(old, new))
    assert fingerprints("tasks.census.stage", root) == before


@pytest.mark.parametrize(
    ("file", "old", "new", "module"),
    [
        ("tasks/census/stage.py", "size: int = 3", "size: int = 4", "tasks.census.stage"),
        ("cohobate/data/rows.py", "return 1", "return 2", "cohobate.data.rows"),
        ("cohobate/late.py", "1", "'1'", "cohobate.late"),
        ("cohobate/data/words.txt", "two", "three", "cohobate/data/words.txt"),
    ],
)
def test_a_change_of_code_is_named(root: Path, file: str, old: str, new: str, module: str) -> None:
    before = fingerprints("tasks.census.stage", root)
    (root / file).write_text((root / file).read_text().replace(old, new))
    after = fingerprints("tasks.census.stage", root)
    assert {name for name in before if before[name] != after[name]} == {module}


def test_a_module_that_is_not_imported_does_not_count(root: Path) -> None:
    before = fingerprints("tasks.census.stage", root)
    (root / "cohobate/unused.py").write_text("X = 2\n")
    assert fingerprints("tasks.census.stage", root) == before
