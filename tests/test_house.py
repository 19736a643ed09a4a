"""The rules of the house, held by the tree itself."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks import params, schema

ROOT = Path(__file__).parents[1]
PRODUCT = sorted([*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")])
STAGES = sorted(path.parent.name for path in (ROOT / "tasks").glob("*/stage.py"))
EMPTY_NAMES = {"utils", "helpers", "common", "misc", "manager", "base"}
RAY_ROOMS = ("flows/placement.py", "tasks/train/", "tasks/generate/")


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def code_dependencies(stage: str) -> set[str]:
    """The rooms of tasks/ that a stage's files reach by imports, and the modules beside them."""
    waiting, seen = [*(ROOT / "tasks" / stage).rglob("*.py")], set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        files = (module_file(m) for m in imported_modules(path) if m.startswith("tasks."))
        waiting += [file for file in files if file]
    return {"/".join(path.relative_to(ROOT).parts[:2]) for path in seen}


def stage_blocks() -> dict[str, dict]:
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return {name: block.get("do", block) for name, block in stages.items()}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_and_sizes(path: Path) -> None:
    where, text = path.relative_to(ROOT).as_posix(), path.read_text()
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert path.stem not in EMPTY_NAMES
    assert text.count("\n") <= 350
    if where.startswith("tasks/"):
        assert "prefect" not in roots and "flows" not in roots
    assert "dvc" not in roots or where == "tasks/lineage/versioning.py"
    assert "ray" not in roots or where.startswith(RAY_ROOMS)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_modules_and_functions_stay_small() -> None:
    lines = sorted(path.read_text().count("\n") for path in PRODUCT if path.stat().st_size)
    functions = sorted(
        node.end_lineno - node.lineno + 1
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert lines[len(lines) // 2] <= 120
    assert functions[len(functions) // 2] <= 15


def test_deadlines_are_on_a_monotonic_clock() -> None:
    """Fault 17: who counts seconds does so by time.monotonic, whatever the clock is set to."""
    assert [
        p for p in PRODUCT if re.search(r"\btime\.time\(|import time as|from time ", p.read_text())
    ] == []


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_code_that_a_stage_imports(stage: str) -> None:
    named = {dep for dep in stage_blocks()[stage]["deps"] if dep.startswith("tasks/")}
    wanted = code_dependencies(stage)
    assert named == wanted, f"deps of {stage} in dvc.yaml should name {sorted(wanted)}"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_params_that_a_stage_reads(stage: str) -> None:
    reads = params.reads_of(params.stage_function(stage)).values()
    wanted = {f"{r.section}.${{key}}" if r.each else r.section for r in reads}
    assert set(stage_blocks()[stage].get("params", [])) == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_enters_each_stage_by_its_door(stage: str) -> None:
    command = stage_blocks()[stage]["cmd"]
    assert command in (f"python -m tasks {stage}", f"python -m tasks {stage}@${{key}}")


def test_params_yaml_is_what_the_schema_says() -> None:
    document = params.load(ROOT / "params.yaml")
    schema.check(document)
    known = schema.json_schema()
    assert set(known["properties"]) == set(document)
    assert json.loads(json.dumps(known)) == known


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "prefect", "ray", "dvc", "matplotlib", "pyarrow", "datasets"]
    code = (
        "import sys, flows.cli, tasks.schema; tasks.schema.sections();"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_makefile_and_ci_call_the_same_tests() -> None:
    assert re.search(r"^make test( LOCK=infra\S+)?$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
