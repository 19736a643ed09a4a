"""The page docs/commands.md: every command with its options, from the command's own help."""

import re
from collections.abc import Iterator

import typer

_HEAD = """\
# Commands

Run them in the folder of `dvc.yaml`. Every command takes `--help`, and most take `--json`.
`cohobate --debug COMMAND` shows tracebacks. [Troubleshooting](errors.md) has the exit codes.
`make pages` writes this page from the commands themselves.
"""


def page(app: typer.Typer) -> str:
    """Return the page in Markdown."""
    group = typer.main.get_command(app)
    commands = getattr(group, "commands", {})  # a group of typer's or click's class
    if not commands:
        raise ValueError("the command has no commands of its own")
    lines = [_HEAD]
    for name, command in sorted(commands.items()):
        lines += _command(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _command(name: str, command: object) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children is not None:
        for child, one in sorted(children.items()):
            yield from _command(f"{name} {child}", one)
        return
    yield f"## cohobate {name}\n"
    yield f"{_text(getattr(command, 'help', '') or '')}\n"
    if rows := list(_parameters(command)):
        yield "| argument or option | | |"
        yield "|---|---|---|"
        yield from rows
        yield ""
    if epilog := getattr(command, "epilog", ""):
        yield f"{_text(epilog)}\n"


def _parameters(command: object) -> Iterator[str]:
    for parameter in getattr(command, "params", ()):
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        names = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "argument":
            names = [parameter.metavar or parameter.name.upper()]
        kind = "" if getattr(parameter, "is_flag", False) else _kind(parameter)
        text = _text(getattr(parameter, "help", "") or "")
        shown = " ".join(f"`{one}`" for one in names)
        yield f"| {shown} | {kind} | {text} |".replace("\n", " ")


def _kind(parameter: object) -> str:
    choices = getattr(getattr(parameter, "type", None), "choices", None)
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    default = getattr(parameter, "default", None)
    empty = default is None or default == "" or callable(default)
    return "" if empty else f"default `{default}`"


def _text(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")
