"""Commands about several rounds: iterate, resume, rounds, show, diff, rollback."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import Exit, Json, Workspace, err, out, print_json, project_root

Number = Annotated[int, typer.Argument(help="Number of a round, as `cohobate rounds` lists it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Examples: `cohobate iterate --rounds 3` · `cohobate iterate --base main`")(
        iterate
    )
    app.command(epilog="Example: `cohobate resume`")(resume)
    app.command(epilog="Example: `cohobate rounds --json`")(rounds)
    app.command(epilog="Example: `cohobate show 3`")(show)
    app.command(epilog="Example: `cohobate diff 2 3`")(diff)
    app.command(epilog="Example: `cohobate rollback 2`")(rollback)


def iterate(
    rounds: Annotated[
        int, typer.Option(help="Highest number of rounds; a stop rule may end them earlier.")
    ] = 1,
    base: Annotated[
        str, typer.Option(help="Commit whose code and params the rounds use.")
    ] = "HEAD",
    workspace: Workspace = "shared",
    as_json: Json = False,
) -> None:
    """Run rounds on this machine, each starting from the champion of the rounds before."""
    from cohobate.dvc_bridge import versioning
    from flows import start_round
    from flows.round_history import History

    root = project_root()
    with History(root).exclusive():
        pass  # refused by the flow, it would be a failed run on the server
    _warn_of_uncommitted(root, base)
    start_round.configure_prefect(root)
    from flows.iterate_rounds import iterate_rounds

    done: list[dict[str, Any]] = []
    for _ in range(rounds):
        with start_round.shown(err, versioning.stages(root)):
            one = iterate_rounds(root, 1, base, workspace=workspace)
        if not one:
            err.print("no further round: a stop rule holds (params.yaml, rounds.stop)")
            break
        done += one
        if not as_json:
            out.print(_line(one[0]), highlight=False)
    if as_json:
        print_json(done)


def resume(as_json: Json = False) -> None:
    """Continue the round that was interrupted; finished stages are kept."""
    from flows.round_history import History

    if not History(project_root()).unfinished():
        err.print("no round was interrupted: there is nothing to resume\n  fix:   cohobate iterate")
        raise typer.Exit(Exit.FAILED)
    iterate(1, as_json=as_json)


def rounds(as_json: Json = False) -> None:
    """List the rounds: whether the student was promoted, and its dev and test scores."""
    from rich.table import Table

    from flows.round_history import History, name_of

    history = History(project_root())
    records = history.records()
    if as_json:
        print_json([record.model_dump() for record in records])
        return
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    for name in ("round", "promoted", "champion", "challenger", "gain on dev", "test", "retention"):
        table.add_column(name, no_wrap=True)
    for record in records:
        gain = record.dev["gain"]
        table.add_row(
            name_of(record.number),
            "[green]yes[/]" if record.promoted else "no",
            f"{record.dev['champion']:.3f}",
            f"{record.dev['challenger']:.3f}",
            f"{100 * gain['mean']:+.1f} \\[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]",
            f"{record.test['student']['score']:.3f}",
            f"{record.test['retention'] or 0:.3f}",
        )
    out.print(table if records else "there is no round yet; start one with: cohobate iterate")
    for number in history.unfinished():
        running = history.is_running()
        state = "is running" if running else "was interrupted: cohobate resume"
        out.print(f"{name_of(number)} {state}", style="" if running else "yellow")
    if (last := history.last()) and last.rolled_back_to:
        out.print(f"{last.why}: the next round starts from {last.champion}", highlight=False)


def show(number: Number, as_json: Json = False) -> None:
    """Show one round: its result, its report, and how to get its files."""
    from rich.markdown import Markdown

    from flows.git import git
    from flows.round_history import History

    history = History(project_root())
    record = history.record(number)
    if as_json:
        print_json(record.model_dump())
        return
    report = git(history.root, "show", f"{history.tag(number)}:./reports/report.md", check=False)
    out.print(_line(record.model_dump()), highlight=False)
    out.print(Markdown(report))
    out.print(f"its files: git checkout {history.tag(number)} && dvc pull", highlight=False)


def diff(one: Number, other: Number, as_json: Json = False) -> None:
    """Compare two rounds: params, scores and the outputs of stages."""
    from flows.round_diff import differences
    from flows.round_history import History

    sections = differences(History(project_root()), one, other)
    if as_json:
        print_json(sections)
        return
    for title, changes in sections.items():
        out.print(title, style="bold")
        for name, (before, after) in changes.items():
            out.print(f"  {name}: {before} -> {after}", highlight=False)


def rollback(number: Number, as_json: Json = False) -> None:
    """Make the champion of an earlier round current again; the next round starts from it."""
    from flows.round_history import History

    record = History(project_root()).roll_back(number)
    message = f"{record.why}: the next round starts from {record.champion}"
    print_json(record.model_dump()) if as_json else out.print(message, highlight=False)


def _line(record: dict[str, Any]) -> str:
    result = "[green]promoted[/]" if record["promoted"] else "[yellow]champion kept[/]"
    why = record["why"].replace("[", "\\[")
    return f"round-{record['number']:04d}  {result}  {why}; champion: {record['champion']}"


def _warn_of_uncommitted(root: Path, base: str) -> None:
    from flows.git import git

    changed = git(root, "status", "--porcelain", "--untracked-files=no").splitlines()
    if base == "HEAD" and changed:
        err.print(
            f"{len(changed)} changed files are not committed: rounds use the commit {base}",
            style="yellow",
        )
