"""The `cohobate` command. Heavy libraries are imported by the commands that need them."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cohobate.errors import UserError, from_os_error
from cohobate.params import ParamsError
from cohobate.utf8 import use_utf8
from flows import (
    data_cli,
    fits_cli,
    recipes_cli,
    rounds_cli,
    search_cli,
    serve_cli,
    services_cli,
)
from flows.console import (
    Exit,
    Json,
    StoppedError,
    Workspace,
    err,
    out,
    plain,
    print_json,
    project_root,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Distil a teacher model into a student, round after round. Run it in the folder of "
    "dvc.yaml.",
    epilog="Exit codes: 0 success · 1 failure · 2 wrong usage or params.yaml · 3 the student did "
    "not pass the gate · 130 stopped by the user.",
)
Stage = Annotated[
    str | None,
    typer.Option(help="Stop after this stage (`filter`, `train@kd`, or `train` for all of them)."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Set a key of params.yaml first. May be repeated."
    ),
]

Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="FILE",
        help="Write this recipe into params.yaml first; may be repeated for recipes that set "
        "different keys. Values that the recipes before replaced are restored; your own edits of "
        "other keys stay. `none` only restores.",
    ),
]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Read the options before the command."""
    _state["debug"] = debug


@app.command(
    epilog="Examples: `cohobate run` · `cohobate run --set seeds=[1,2,3]` · "
    "`cohobate run --stage filter --dry-run` · `cohobate run --recipe recipes/hinton-kd.yaml`"
)
def run(
    *,
    stage: Stage = None,
    settings: Settings = None,
    recipes: Recipes = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print what would run and why; run nothing.")
    ] = False,
    rerun_code: Annotated[
        bool, typer.Option(help="Run long stages again even if nothing but their code changed.")
    ] = False,
    workspace: Workspace = "shared",
    as_json: Json = False,
) -> None:
    """Run one round: every stage of dvc.yaml that is not up to date."""
    from flows import overrides, start_round

    root = project_root()
    if dry_run:
        from flows.plan import plan

        with overrides.temporarily(root, settings or [], recipes):
            planned = plan(root, stage)
            _show_plan(planned, as_json)
            _show_prices(root)
            start_round.show_duration(root, stage, err, planned)
            start_round.show_memory(root, err, planned)
        return
    for change in overrides.apply(root, settings or [], recipes):
        err.print(f"params.yaml: {change}", highlight=False)
    outcome = start_round.run_round(
        root, stage, err, workspace, rerun_code=rerun_code, changes=settings or []
    )
    if as_json:
        print_json(outcome)
    else:
        start_round.show_outcome(root, outcome, out)
    if outcome["gate_passed"] is False:
        raise typer.Exit(Exit.GATE_NOT_MET)


@app.command(epilog="Examples: `cohobate accept` · `cohobate accept capture train@kd`")
def accept(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="Stages, such as `train@kd` or `train`; none: all of which only the code changed."
        ),
    ] = None,
) -> None:
    """Keep the outputs of stages of which nothing but the code changed: you vouch for the edit."""
    from flows.code_changes import accept as keep

    accepted = keep(project_root(), stages or [])
    for stage in accepted:
        out.print(f"{stage}: its outputs are kept", highlight=False)
    if not accepted:
        out.print("there is nothing to accept: no stage differs in its code alone")


@app.command(epilog="Examples: `cohobate upgrade` · `cohobate upgrade --keep-outputs`")
def upgrade(
    keep_outputs: Annotated[
        bool,
        typer.Option(
            help="Keep the outputs of all stages that ran: you vouch for what the earlier "
            "version computed."
        ),
    ] = False,
) -> None:
    """Give a project of an earlier version the names of this one: params.yaml, dvc.lock, paths."""
    from flows.upgrade import keep_all
    from flows.upgrade import upgrade as rename

    root = project_root()
    changes = rename(root)
    for change in changes:
        out.print(change, highlight=False, soft_wrap=True)
    if not changes:
        out.print("params.yaml and dvc.lock have the names of this version")
    for stage in keep_all(root) if keep_outputs else ():
        out.print(f"{stage}: its outputs are kept", highlight=False)


@app.command(epilog="Example: `cohobate status --json`")
def status(as_json: Json = False) -> None:
    """Show which stages are up to date, why others are not, and the last round's result."""
    from flows import start_round
    from flows.plan import plan

    root = project_root()
    planned = plan(root)
    metrics = start_round.metrics(root)
    if as_json:
        print_json({"stages": [vars(stage) for stage in planned], "metrics": metrics})
        return
    _show_plan(planned, as_json=False)
    if metrics:
        start_round.show_verdict(metrics, out)


@app.command(epilog="Examples: `cohobate report` · `cohobate report --against round-0006`")
def report(
    against: Annotated[
        str,
        typer.Option(help="Compare with this git revision, or a folder with a metrics.json."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Write reports/report.html and reports/report.md again from the last round's files."""
    from tasks.evaluate.report import render

    root = project_root()
    if not (root / "reports/metrics.json").exists():
        raise UserError(
            "no round has been evaluated in this project", where="reports/", fix="cohobate run"
        )
    html = render(root, against)
    print_json({"html": str(html)}) if as_json else out.print(f"{html}", highlight=False)


@app.command(epilog="Example: `cohobate ui --port 4200`")
def ui(
    port: Annotated[int, typer.Option(help="Port on loopback.")] = 4200,
    as_json: Json = False,
) -> None:
    """Serve the Prefect UI with this project's rounds, on loopback, until Ctrl-C."""
    import os

    from flows.services import use_services

    use_services(project_root())
    url = os.environ.get("PREFECT_API_URL", "").removesuffix("/api") or f"http://127.0.0.1:{port}"
    print_json({"url": url}) if as_json else out.print(f"{url}/runs", highlight=False)
    sys.stdout.flush()
    if "PREFECT_API_URL" not in os.environ:
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        os.environ["PREFECT_UI_API_URL"] = f"http://127.0.0.1:{port}/api"
        os.execv(sys.executable, [sys.executable, "-m", "prefect", *command])


@app.command("params", epilog="Example: `cohobate params --schema > params.schema.json`")
def show_params(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema.")] = False,
    as_json: Json = False,
) -> None:
    """Check params.yaml; with --schema, print its JSON schema."""
    from cohobate import params
    from flows import params_schema as whole

    if schema:
        print_json(whole.json_schema())
        return
    document = params.load(project_root() / params.PARAMS)
    whole.check(document)
    print_json(document) if as_json else out.print("params.yaml: ok")


@app.command(epilog="Example: `cohobate doctor`")
def doctor(as_json: Json = False) -> None:
    """Check versions, locks, disk, memory, servers and remote; each problem comes with a fix."""
    from flows.doctor import examine

    findings = examine(project_root())
    if as_json:
        print_json([vars(finding) for finding in findings])
    for finding in [] if as_json else findings:
        mark = "[green]✓[/]" if finding.ok else "[red]✗[/]"
        out.print(f"{mark} {finding.what}", highlight=False)
        if finding.fix:
            out.print(f"  fix: {finding.fix}", style="dim", highlight=False, soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(Exit.FAILED)


data_cli.register(app)
fits_cli.register(app)
recipes_cli.register(app)
rounds_cli.register(app)
search_cli.register(app)
serve_cli.register(app)
services_cli.register(app)


def main() -> None:
    """Run the command line; a `UserError` prints three lines, without a traceback."""
    use_utf8()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # else Prefect's server would outlive this process
    try:
        app()
    except SystemExit as end:
        if end.code == Exit.STOPPED:
            err.print("stopped; finished stages are kept\n  fix:   repeat the command to go on")
        raise
    except UserError as error:
        if _state["debug"]:
            raise
        _show_error(error)
        sys.exit(_exit_code(error))
    except OSError as error:
        if _state["debug"] or not (readable := from_os_error(error)):
            raise
        _show_error(readable)
        sys.exit(Exit.FAILED)


def _exit_code(error: UserError) -> Exit:
    if isinstance(error, StoppedError):
        return Exit.STOPPED
    return Exit.USAGE if isinstance(error, ParamsError) else Exit.FAILED


def _show_error(error: UserError) -> None:
    err.print(f"[bold red]error:[/] {plain(str(error))}", highlight=False, soft_wrap=True)


def _show_plan(planned: list[Any], as_json: bool) -> None:
    if as_json:
        print_json([vars(stage) for stage in planned])
        return
    looks = {"up to date": "dim", "follows": "cyan", "code only": "magenta"}
    looks |= {"changed": "yellow", "new": "yellow"}
    width = max(len(stage.address) for stage in planned)
    for stage in planned:
        why = "; ".join(stage.reasons[:4]) + (" ..." if len(stage.reasons) > 4 else "")
        state = f"[{looks[stage.state]}]{stage.state:<10}[/]"
        out.print(f"{stage.address:<{width}}  {state}  {plain(why)}", highlight=False)


def _show_prices(root: Path) -> None:
    """Print on stderr what the teachers and judges behind endpoints will cost."""
    from cohobate import params
    from cohobate.backends.settings import GenerateParams
    from cohobate.methods.train import Method
    from cohobate.teachers.teacher import Teachers
    from flows.judge_estimate import estimate_judges
    from flows.price_estimate import estimate_prices
    from tasks.evaluate.settings import EvaluateParams

    document = params.load(root / params.PARAMS)
    teachers = params.validated(Teachers, document["teachers"], "teachers")
    generate = params.validated(GenerateParams, document["generate"], "generate")
    evaluate = params.validated(EvaluateParams, document["evaluate"], "evaluate")
    phases = {
        f"{section}.{key}": params.validated(Method, phase, f"{section}.{key}")
        for section in ("assist", "train")
        for key, phase in document[section].items()
        if phase["method"] == "on_policy"
    }
    seeds = len(document["seeds"])
    for line in estimate_prices(teachers, generate, evaluate, root, phases=phases, seeds=seeds):
        err.print(line, highlight=False)
    # of each phase a checkpoint for each seed, beside the teacher and the initial student
    models = 2 + seeds * len(document["train"])
    for line in estimate_judges(evaluate, models, root):
        err.print(line, highlight=False)


_state = {"debug": False}
