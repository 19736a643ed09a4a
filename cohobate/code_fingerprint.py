"""Fingerprints of Python code: what a module does, without its comments, docstrings and layout.

A stage's code is its module and everything of this project that it imports, directly or not. Two
versions of a file have the same fingerprint where their syntax trees are the same once docstrings
are left out, so that an edit of a comment reruns nothing.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("cohobate", "tasks")
"""Packages whose code decides what a stage writes."""


def fingerprints(module: str, root: Path = Path()) -> dict[str, str]:
    """Return the fingerprint of a module and of all that it imports of this project, by name.

    Files beside a module's package that are no Python, such as templates, count as code of each
    module in it. Imports under `if TYPE_CHECKING:` do not run, and do not count.

    Raises:
        SyntaxError: a file is not Python.
    """
    hashes: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in hashes or (path := _file_of(name, root)) is None:
            continue
        content = path.read_bytes()
        hashes[name] = _of_source(content)
        # importing a module runs the __init__ of each package above it
        parents = [name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)]
        waiting += [*_imports(content, name, root), *parents]
        if path.name == "__init__.py" and "." in name:  # data of a root package is no code
            hashes |= {
                str(file.relative_to(root)): _hash(file.read_bytes()) for file in _data(path)
            }
    return dict(sorted(hashes.items()))


def _file_of(module: str, root: Path) -> Path | None:
    if module.split(".", maxsplit=1)[0] not in PACKAGES:
        return None
    base = root.joinpath(*module.split("."))
    candidates = (base.with_name(base.name + ".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _data(package: Path) -> list[Path]:
    """Return the files of a package's folder that are no code: templates, word lists."""
    folders = [package.parent, *(f for f in package.parent.iterdir() if _is_data_folder(f))]
    files = (file for folder in folders for file in folder.iterdir() if file.is_file())
    return sorted(file for file in files if file.suffix not in {".py", ".pyc"})


def _is_data_folder(folder: Path) -> bool:
    return folder.is_dir() and folder.name != "__pycache__" and not any(folder.glob("*.py"))


def _of_source(content: bytes) -> str:
    return _cached(content)[0]


def _imports(content: bytes, module: str, root: Path) -> Iterator[str]:
    """Yield the modules of this project that a file imports, wherever in it."""
    for base, names in _cached(content)[1]:
        if _file_of(base, root) is None:
            continue
        yield base
        # `from package import module`: the name may be a module of its own
        for name in names:
            if _file_of(f"{base}.{name}", root):
                yield f"{base}.{name}"


@cache
def _cached(content: bytes) -> tuple[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    tree = ast.parse(content)
    imports: list[tuple[str, tuple[str, ...]]] = []
    for node in _that_runs(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.append((node.module, tuple(alias.name for alias in node.names)))
    return _hash(_written(tree).encode()), tuple(imports)


def _that_runs(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a tree, but for what is imported for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        if _for_type_checkers(child):
            continue
        yield child
        yield from _that_runs(child)


def _written(node: Any) -> str:
    """Return a syntax tree as text that does not depend on the version of Python.

    `ast.dump` shows fields that a later version adds; here what is empty is left out.
    """
    if isinstance(node, list):
        return "[" + ",".join(_written(each) for each in node if _counts(each)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # `kind` tells u"" from "", which mean the same
    fields = ((name, getattr(node, name, None)) for name in node._fields if name != "kind")
    shown = (f"{name}={_written(value)}" for name, value in fields if value not in (None, []))
    return f"{type(node).__name__}({','.join(shown)})"


def _counts(node: Any) -> bool:
    return not _is_docstring(node) and not _for_type_checkers(node)


def _for_type_checkers(node: Any) -> bool:
    """Say whether a node is `if TYPE_CHECKING:` without an `else`."""
    named = isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    return named and not node.orelse


def _is_docstring(node: Any) -> bool:
    """Say whether a statement is a string alone: a docstring of a module, function or field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
