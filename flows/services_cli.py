"""Commands about servers: up, down, deploy, trigger."""

from typing import Annotated, Any

import typer

from cohobate.errors import UserError
from flows.console import Exit, Json, StoppedError, err, out, plain, print_json, project_root


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: `cohobate up && cohobate trigger nightly --wait`")(up)
    app.command(epilog="Example: `cohobate down`")(down)
    app.command(epilog="Example: `cohobate deploy`")(deploy)
    app.command(epilog="Example: `cohobate trigger on-demand --params '{\"rounds\": 3}' --wait`")(
        trigger
    )


def up(as_json: Json = False) -> None:
    """Start a Prefect server, Ray and a Prefect worker on loopback, and deploy the flows there."""
    from flows import services

    root = project_root()
    started = services.up(root, lambda line: err.print(line, highlight=False))
    services.use_services(root)
    from flows import deployments

    names = deployments.deploy(root)
    if as_json:
        print_json(started.model_dump() | {"deployments": names})
        return
    out.print(f"deployed  {', '.join(name for name in names if ':' not in name)}", highlight=False)
    out.print(f"look at   {started.prefect_url.removesuffix('/api')}/deployments", highlight=False)


def down(as_json: Json = False) -> None:
    """Stop the servers that `cohobate up` started; finished stages of a round are kept."""
    from flows import services

    stopped = services.down(project_root())
    message = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    print_json({"stopped": stopped}) if as_json else out.print(message)


def deploy(as_json: Json = False) -> None:
    """Create or update the deployments of infra/prefect.yaml and their automations."""
    names = _deployments().deploy(project_root())
    print_json(names) if as_json else out.print("\n".join(names), highlight=False)


def trigger(
    name: Annotated[
        str, typer.Argument(help="Name of a deployment, such as `nightly` or `on-demand`.")
    ],
    wait: Annotated[
        bool, typer.Option("--wait", help="Print the run's log until it ends.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Do not start a run; follow the one in progress.")
    ] = False,
    params: Annotated[
        str | None, typer.Option(help="Parameters of the run, as a JSON object.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a run of a deployment on the server.

    While a run is in progress, a second of `nightly` would be cancelled: --wait follows the first.
    """
    deployments = _deployments()
    given = deployments.parameters_of(params)
    running = deployments.active_run(name)
    attach = running and (follow or deployments.cancels_second_run(name))
    if follow and not running:
        raise UserError(f"no run of {name} is in progress", fix=f"cohobate trigger {name} --wait")
    if attach:
        _report_active_run(name, running)
    run = running if attach else deployments.trigger(name, given)
    wait = wait or follow
    if wait:
        run = _followed(deployments, name, run, as_json)
    state = run.state.name if run.state else "unknown"
    if as_json:
        print_json({"run": str(run.id), "name": run.name, "state": state})
    else:
        out.print(f"{run.name}  {state}", highlight=False)
    if wait and not (run.state and run.state.is_completed()):
        raise typer.Exit(Exit.FAILED)


def _report_active_run(name: str, run: Any) -> None:
    """Print on stderr that a run is in progress, its round, and how to follow it."""
    import os

    from flows.round_history import History, name_of

    history = History(project_root())
    rounds = [name_of(number) for number in history.unfinished() if history.is_running()]
    what = f"{rounds[0]} in {history.workspace(history.unfinished()[0])}" if rounds else "its round"
    url = os.environ["PREFECT_API_URL"].removesuffix("/api")
    err.print(f"a run of {name} is in progress: {run.name} works on {what}", highlight=False)
    err.print(f"  where:  {url}/runs/flow-run/{run.id}", highlight=False, soft_wrap=True)
    err.print(f"  follow: cohobate trigger {name} --follow", highlight=False)


def _followed(deployments: Any, name: str, run: Any, as_json: bool) -> Any:
    """Follow a run to its end.

    Raises:
        StoppedError: this command is stopped; the run goes on.
        UserError: the server went away.
    """
    from httpx import TransportError

    again = f"cohobate trigger {name} --follow"
    quiet = (lambda line: None) if as_json else (lambda line: err.print(plain(line)))
    try:
        return deployments.follow(run, quiet)
    except KeyboardInterrupt:
        raise StoppedError(
            f"stopped waiting; {run.name} continues on its worker",
            fix=f"{again}   (or stop it: prefect flow-run cancel {run.id})",
        ) from None
    except TransportError as error:
        raise UserError(
            f"the Prefect server no longer answers: {error}; {run.name} may go on at the worker",
            fix=f"cohobate up, then {again}",
        ) from None


def _deployments() -> Any:
    """Import what talks to Prefect, once it is known which server that is."""
    import os

    from flows.services import use_services

    use_services(project_root())
    if "PREFECT_API_URL" not in os.environ:
        raise UserError("no Prefect server runs for this project", fix="cohobate up")
    from flows import deployments

    return deployments
