"""Conventions of the code, checked on the tree itself."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cohobate import params
from flows import params_schema
from tasks import signatures

ROOT = Path(__file__).parents[1]
FLOORS = ("cohobate", "tasks", "flows")
"""From the lowest to the highest: each imports only itself and those below."""
PRODUCT = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
LAYERS = (
    "errors", "utf8", "proxies", "cache", "progress", "params", "packaged", "sealed_folder",
    "terminal", "processes", "thread_map", "lazy_names", "code_fingerprint", "ray_node", "data",
    "models", "fast", "generation", "scoring", "losses", "teachers", "backends", "training",
    "students", "methods", "evaluation", "serving", "dvc_bridge",
)  # fmt: skip
"""Modules and packages of the library, each above those that it may import."""
STAGES = sorted(path.parent.name for path in (ROOT / "tasks").glob("*/stage.py"))
EMPTY_NAMES = {"utils", "helpers", "common", "misc", "manager", "base"}
MAY_IMPORT_RAY = (
    "flows/placement.py",
    "cohobate/training/distributed.py",
    "cohobate/backends/ray_workers.py",
    "cohobate/teachers/ray_pool.py",
    "cohobate/ray_node.py",
)


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def module_exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    inside = module.split(".", maxsplit=1)[0] in FLOORS
    return inside and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


def package_of(parts: tuple[str, ...]) -> str:
    """`cohobate.losses.uld` is of the package cohobate.losses; flows is one package."""
    if parts[0] == "flows" or len(parts) == 1:
        return parts[0]
    return ".".join(parts[:2])


def stage_blocks() -> dict[str, dict]:
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return {name: block.get("do", block) for name, block in stages.items()}


@pytest.mark.parametrize("path", PRODUCT, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_and_sizes(path: Path) -> None:
    where, text = path.relative_to(ROOT).as_posix(), path.read_text()
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert path.stem not in EMPTY_NAMES
    assert text.count("\n") <= 350
    above = FLOORS[FLOORS.index(where.split("/")[0]) + 1 :]
    assert not roots.intersection(above), f"{where} imports from {above}"
    assert "prefect" not in roots or where.startswith("flows/")
    assert "dvc" not in roots or where == "cohobate/dvc_bridge/private_calls.py"
    assert "ray" not in roots or where in MAY_IMPORT_RAY
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


def test_library_packages_import_in_one_direction() -> None:
    back = []
    for path in sorted((ROOT / "cohobate").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) == 2 and parts[1] == "__init__":
            continue
        here = LAYERS.index(parts[1])
        for module in imported_modules(path):
            names = module.split(".")
            if names[0] == "cohobate" and len(names) > 1 and LAYERS.index(names[1]) > here:
                back.append(f"{'/'.join(parts)} imports {module}")
    assert back == []


def test_the_graph_of_packages_has_no_circle() -> None:
    """`pytest -s -k graph_of_packages` prints it: each package, and what it imports how often."""
    graph: dict[str, Counter[str]] = {}
    for path in PRODUCT:
        here = package_of(path.relative_to(ROOT).with_suffix("").parts)
        there = {m for m in imported_modules(path) if module_exists(m)}
        others = Counter(package_of(tuple(m.split("."))) for m in there)
        graph[here] = graph.get(here, Counter()) + Counter(
            {k: n for k, n in others.items() if k != here}
        )
    for package, imports in sorted(graph.items()):
        print(f"{package:<22} -> {', '.join(f'{k} {n}' for k, n in imports.most_common())}")
    sorter = TopologicalSorter({package: set(imports) for package, imports in graph.items()})
    sorter.prepare()


def test_no_two_classes_have_one_name() -> None:
    classes = defaultdict(list)
    for path in PRODUCT:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: files for name, files in classes.items() if len(files) > 1} == {}


def test_no_two_test_modules_have_one_name() -> None:
    # tests are no packages: pytest imports each by its file's name alone
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_stage_imports_another() -> None:
    for stage in STAGES:
        for path in (ROOT / "tasks" / stage).rglob("*.py"):
            others = {m.split(".")[1] for m in imported_modules(path) if m.startswith("tasks.")}
            assert others <= {stage, "signatures"}, path


def test_no_modules_import_each_other() -> None:
    graph = {}
    for path in PRODUCT:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = {name for name in imported_modules(path) if module_exists(name)} - {module}
        # `from package import module` depends on the module, not on all that the package holds
        packages = {name.rpartition(".")[0] for name in names}
        graph[module] = {n for n in names if n not in packages or f"{n}." not in f"{module}."}
    sorter = TopologicalSorter(graph)
    sorter.prepare()  # raises CycleError, which names the circle


def test_deadlines_are_on_a_monotonic_clock() -> None:
    """Seconds are counted by time.monotonic, whatever the clock is set to."""
    assert [
        p for p in PRODUCT if re.search(r"\btime\.time\(|import time as|from time ", p.read_text())
    ] == []


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_depends_on_the_fingerprint_of_its_code(stage: str) -> None:
    code = {dep for dep in stage_blocks()[stage]["deps"] if dep.startswith("data/code/")}
    assert code == (set() if stage == "code" else {f"data/code/{stage}.json"})


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_names_the_params_that_a_stage_reads(stage: str) -> None:
    reads = signatures.reads_of(signatures.stage_function(stage)).values()
    expected = {f"{r.section}.${{key}}" if r.each else r.section for r in reads}
    assert set(stage_blocks()[stage].get("params", [])) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_yaml_runs_each_stage_by_its_name(stage: str) -> None:
    command = stage_blocks()[stage]["cmd"]
    assert command in (f"python -m tasks {stage}", f"python -m tasks {stage}@${{key}}")


def test_params_yaml_is_what_the_schema_says() -> None:
    document = params.load(ROOT / "params.yaml")
    params_schema.check(document)
    known = params_schema.json_schema()
    assert set(known["properties"]) == set(document)
    assert json.loads(json.dumps(known)) == known


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "prefect", "ray", "dvc", "matplotlib", "pyarrow", "datasets"]
    code = (
        "import sys, flows.cli, flows.params_schema; flows.params_schema.sections();"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_makefile_and_ci_call_the_same_tests() -> None:
    assert re.search(r"^make test( LOCK=infra\S+)?$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
