"""The page docs/errors.md: every error that a person can fix, read from the code.

The code is parsed, not run. Each call of `UserError` or of a class derived from it gives a message
and its fixes, each ValueError of a section's validators a message. What an f-string fills in is
shown as `…`, so that renaming a variable changes nothing here.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("tasks", "cohobate", "flows")
GAP = "…"
SETTINGS = "Settings that params.yaml refuses"
COMMANDS = "Commands and rounds"
TITLES = {
    "backends": "Answers of teachers: backends, ledger, money",
    "data": "Rows and data files",
    "dvc_bridge": "DVC",
    "evaluation": "Scores and metrics",
    "scoring": "Scores and metrics",
    "losses": "Training",
    "methods": "Training",
    "training": "Training",
    "fast": "Models and generation",
    "generation": "Models and generation",
    "models": "Models and generation",
    "packaged": "Packaged models and data",
    "serving": "Trying a student",
    "students": "Initial students",
    "teachers": "Teachers and signals",
}
"""Of the packages of the library; of one that is not here, its name."""
_ALONE = re.compile(rf"[{GAP}\W]*")
"""A message that is nothing but what is filled in: another place holds it."""
_MOST = 8
"""Most texts of one message; their number doubles with each choice inside it."""
_HEAD = f"""\
# Troubleshooting

`cohobate` and `python -m tasks` print an error in three lines: what is wrong, where, and `fix:`
with the next command. `cohobate --debug` before a command adds the traceback. `cohobate doctor`
checks versions, locks, disk, memory, servers and the remote. Finished stages are kept after any
error: repeat the command to go on.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | failure |
| 2 | wrong usage, or a mistake in `params.yaml` |
| 3 | the round ran, and the student did not pass the gate |
| 130 | stopped by the user |

Below is every message; `{GAP}` stands for what is filled in. `make pages` writes this page from the
code.
"""
Assigned = dict[str, list[ast.expr]]
"""The expressions that are assigned to each name."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Message(NamedTuple):
    """One message, the group it belongs to, and the fixes that come with it."""

    group: str
    what: str
    fixes: tuple[str, ...]


def page(root: Path) -> str:
    """Return the page in Markdown."""
    groups: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for group, what, fixes in messages(root):
        groups[group][what] += fixes
    lines = [_HEAD]
    anchors: set[str] = set()
    for group in sorted(groups, key=lambda name: (name == SETTINGS, name.strip("`").lower())):
        lines.append(f"## {group}\n")
        for what in sorted(groups[group], key=lambda text: (text.strip(f"{GAP}' ").lower(), text)):
            lines += _entry(what, sorted(set(groups[group][what])), anchors)
    lines += _errors_of_dvc(root / "cohobate/dvc_bridge/dvc_errors.py")
    return "\n".join(lines)


def messages(root: Path) -> Iterator[Message]:
    """Yield the messages of all errors in the code."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    trees = {path.relative_to(root): ast.parse(path.read_text("utf-8")) for path in paths}
    errors = {name: Maker(("what",)) for name in _subclasses("UserError", trees.values())}
    for path, tree in trees.items():
        constants = _assigned(tree.body)
        makers = errors | dict(_makers(tree, errors))
        for function in _functions(tree):
            assigned = constants | _assigned(ast.walk(function))
            for what, fix, refused in _raised(function, makers):
                fixes = tuple(_texts(fix, assigned))
                for text in _texts(what, assigned):
                    yield Message(SETTINGS if refused else _group(path), text, fixes)


class Maker(NamedTuple):
    """A class of errors, or a function that returns or raises the error that it is given."""

    parameters: tuple[str, ...]
    what: str = "what"
    """Which of them is the message."""
    fix: str = "fix"
    """Which of them is the fix; empty where the function has its own, `own_fix`."""
    own_fix: ast.expr | None = None

    def arguments(self, call: ast.Call) -> tuple[ast.expr | None, ast.expr | None]:
        """Return what a call gives as message and as fix."""
        given: dict[str | None, ast.expr] = dict(zip(self.parameters, call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords}
        return given.get(self.what), given.get(self.fix, self.own_fix)


def _functions(tree: ast.Module) -> Iterator[Function]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _makers(tree: ast.Module, errors: dict[str, Maker]) -> Iterator[tuple[str, Maker]]:
    for function in _functions(tree):
        listed = [argument.arg for argument in function.args.args]
        parameters = tuple(name for name in listed if name != "self")
        for what, fix, _ in _raised(function, errors):
            names = {one.id for one in ast.walk(what) if isinstance(one, ast.Name)} if what else ()
            # f"{what} ({message})": the first argument is the message
            mine = [name for name in parameters if name in names]
            if mine and not _texts(what, {}):
                name = fix.id if isinstance(fix, ast.Name) and fix.id in parameters else ""
                yield function.name, Maker(parameters, mine[0], name, fix)


def _raised(
    function: Function, makers: dict[str, Maker]
) -> Iterator[tuple[ast.expr | None, ast.expr | None, bool]]:
    """Yield message and fix of each error, and whether it is one of a section's validators."""
    validates = any("_validator" in ast.dump(one) for one in function.decorator_list)
    for node in ast.walk(function):
        if isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple):
            if len(node.value.elts) == 3:  # what, where, fix: the caller makes the error
                yield node.value.elts[0], node.value.elts[2], False
        elif isinstance(node, ast.Call):
            name = _last_name(node.func)
            if name in makers:
                yield *makers[name].arguments(node), False
            elif validates and name == "ValueError" and node.args:
                yield node.args[0], None, True


def _last_name(node: ast.expr) -> str:
    """Return `c` of `a.b.c`; nothing of another expression."""
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _subclasses(base: str, trees: Iterable[ast.Module]) -> set[str]:
    names = {base}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while (
        new := {one.name for one in classes if names & {_last_name(parent) for parent in one.bases}}
        - names
    ):
        names |= new
    return names


def _assigned(nodes: Iterable[ast.AST]) -> Assigned:
    assigned: Assigned = defaultdict(list)
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        for target in targets if isinstance(node, ast.Assign | ast.AnnAssign) else ():
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=False))
            for name, one in pairs:
                if isinstance(name, ast.Name) and one is not None:
                    assigned[name.id].append(one)
    return dict(assigned)


def _texts(node: ast.expr | None, assigned: Assigned) -> list[str]:
    """Return the texts that an expression can be, on one line each; none where it has no words."""
    texts = [re.sub(rf"{GAP}+", GAP, " ".join(text.split())) for text in _values(node, assigned, 3)]
    return [text for text in dict.fromkeys(texts) if not _ALONE.fullmatch(text)][:_MOST]


def _values(  # noqa: PLR0911
    node: ast.expr | None, assigned: Assigned, depth: int
) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            texts = [""]
            for part in parts:
                ends = [part.value] if isinstance(part, ast.Constant) else [GAP]
                texts = [text + str(end) for text in texts for end in ends]
            return texts
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            ends = _values(right, assigned, depth)
            return [text + end for text in _values(left, assigned, depth) for end in ends][:_MOST]
        case ast.IfExp(body=body, orelse=other):
            return _values(body, assigned, depth) + _values(other, assigned, depth)
        case ast.BoolOp(op=ast.Or(), values=values):
            return [text for value in values for text in _values(value, assigned, depth)]
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(), attr="join"), args=[ast.List(elts=lines)]
        ):
            return _values(lines[0], assigned, depth)
        case ast.Name(id=name) if depth and name in assigned:
            return [text for one in assigned[name] for text in _values(one, assigned, depth - 1)]
    return [GAP]


def _group(path: Path) -> str:
    package, *rest = path.parts
    if package == "tasks":
        return f"The stage `{rest[0]}`" if len(rest) > 1 else COMMANDS
    if package == "flows":
        return "Search" if rest[0].startswith("search") else COMMANDS
    return TITLES.get(rest[0], rest[0].capitalize()) if len(rest) > 1 else "Project and machine"


def _entry(what: str, fixes: list[str], anchors: set[str]) -> list[str]:
    anchor = "-".join(re.findall(r"[a-z0-9]+", what.lower())[:10])
    number = 1
    while (name := f"{anchor}-{number}" if number > 1 else anchor) in anchors:
        number += 1
    anchors.add(name)
    lines = [f'<a id="{name}"></a>**{_escaped(what)}**  ']
    lines += [f"fix: {_escaped(fix)}  " for fix in fixes]
    return ["\n".join(lines).rstrip() + "\n"]


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_<>\[\]{}|$~#])", r"\\\1", text)


def _errors_of_dvc(path: Path) -> list[str]:
    """Return the table of DVC's own exceptions, whose messages DVC writes."""
    [fixes] = [
        node.value
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_FIXES"
    ]
    assert isinstance(fixes, ast.Dict)
    lines = ["## DVC's own errors\n", "DVC writes the message, and the fix is added.\n"]
    lines += ["| error of DVC | fix |", "|---|---|"]
    for name, fix in ast.literal_eval(fixes).items():
        lines.append(f"| {name} | {_escaped(fix)} |")
    return [*lines, ""]
