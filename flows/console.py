"""Consoles, common options, exit codes and the project's root, shared by all commands."""

import json
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cohobate.errors import UserError

out = Console(soft_wrap=True)
err = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Workspace = Annotated[
    Literal["shared", "isolated"],
    typer.Option(help="`isolated`: the nodes of the cluster share no disk with this folder."),
]


class Exit(IntEnum):
    """Exit codes."""

    OK = 0
    FAILED = 1
    USAGE = 2
    GATE_NOT_MET = 3
    STOPPED = 130


class StoppedError(UserError):
    """The user stopped this command; the run that it waited for continues on the server."""


def project_root() -> Path:
    """Return the current folder, which must be a project's root."""
    root = Path.cwd()
    if not (root / "dvc.yaml").exists():
        raise UserError("this folder has no dvc.yaml", where=str(root), fix="cd <the project>")
    return root


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, sort_keys=True, default=str))


def plain(text: str) -> str:
    """Return text that rich prints unchanged."""
    return escape(text)
