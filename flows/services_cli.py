"""The commands of `cohobate` that are about servers: up, down, deploy, trigger."""

from typing import Annotated, Any

import typer

from flows.console import Exit, Json, err, out, plain, print_json, project_root
from tasks.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: `cohobate up && cohobate trigger nightly --wait`")(up)
    app.command(epilog="Example: `cohobate down`")(down)
    app.command(epilog="Example: `cohobate deploy`")(deploy)
    app.command(epilog="Example: `cohobate trigger on-demand --params '{\"rounds\": 3}' --wait`")(
        trigger
    )


def up(as_json: Json = False) -> None:
    """Start a Prefect server, Ray and a worker on loopback, and deploy the flows there."""
    from flows import services

    root = project_root()
    found = services.up(root, lambda line: err.print(line, highlight=False))
    services.use_services(root)
    from flows import deployments

    names = deployments.deploy(root)
    if as_json:
        print_json(found.model_dump() | {"deployments": names})
        return
    out.print(f"deployed  {', '.join(name for name in names if ':' not in name)}", highlight=False)
    out.print(f"look at   {found.prefect_url.removesuffix('/api')}/deployments", highlight=False)


def down(as_json: Json = False) -> None:
    """Stop what `up` started; what a round had finished is kept."""
    from flows import services

    stopped = services.down(project_root())
    said = f"stopped {', '.join(stopped)}" if stopped else "nothing was running"
    print_json({"stopped": stopped}) if as_json else out.print(said)


def deploy(as_json: Json = False) -> None:
    """Create or update the deployments of infra/prefect.yaml, and the automations."""
    names = _deployments().deploy(project_root())
    print_json(names) if as_json else out.print("\n".join(names), highlight=False)


def trigger(
    name: Annotated[str, typer.Argument(help="A deployment: `nightly`, `on-demand`, …")],
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end.")] = False,
    params: Annotated[str | None, typer.Option(help="Parameters of the run, as JSON.")] = None,
    as_json: Json = False,
) -> None:
    """Ask the server for a run of a deployment."""
    deployments = _deployments()
    run = deployments.trigger(name, deployments.parameters_of(params))
    if wait:
        quiet = (lambda line: None) if as_json else (lambda line: err.print(plain(line)))
        run = deployments.follow(run, quiet)
    state = run.state.name if run.state else "unknown"
    if as_json:
        print_json({"run": str(run.id), "name": run.name, "state": state})
    else:
        out.print(f"{run.name}  {state}", highlight=False)
    if wait and not (run.state and run.state.is_completed()):
        raise typer.Exit(Exit.FAILED)


def _deployments() -> Any:
    """Import what talks to Prefect, once it is known which server that is."""
    import os

    from flows.services import use_services

    use_services(project_root())
    if "PREFECT_API_URL" not in os.environ:
        raise UserError("no Prefect server runs for this project", mend="cohobate up")
    from flows import deployments

    return deployments
