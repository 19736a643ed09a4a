"""Commands of a search for better params: run, show, apply."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cohobate.errors import UserError
from flows.console import Json, err, out, plain, print_json, project_root

if TYPE_CHECKING:
    from flows.search_space import Search
    from flows.search_study import SearchStudy, TrialResult

SearchPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="The search's file, such as search.yaml.")
]

app = typer.Typer(
    no_args_is_help=True,
    help="Search for better params: Optuna proposes, rounds try, the dev rows decide.",
    epilog="Examples: `cohobate search run search.yaml` · `cohobate search show search.yaml` · "
    "`cohobate search apply search.yaml best`",
)


def register(parent: typer.Typer) -> None:
    """Add the commands."""
    parent.add_typer(app, name="search")


@app.command(epilog="Example: `cohobate search run search.yaml`")
def run(path: SearchPath, as_json: Json = False) -> None:
    """Run trials within the budget, then evaluate the best; repeat the command to go on."""
    from flows import search_results, search_space, start_round

    root = project_root()
    search = search_space.read(path)
    start_round.configure_prefect(root)
    from flows.search import search_params, trial_handler

    trial_handler.set(lambda one, study: _say(one, study, search))
    limits = [f"{search.budget.trials} trials"]
    limits += [f"{search.budget.hours:g} hours"] if search.budget.hours else []
    limits += [f"{search.budget.money:g} US dollars"] if search.budget.money else []
    err.print(f"{path.stem}: up to {', '.join(limits)}, {search.at_once} at a time", style="dim")
    values = search_params(root, path.absolute())
    if as_json:
        print_json(values)
    else:
        _show(values, path.stem, search_results.write_picture(values, root, path.stem))


@app.command(epilog="Example: `cohobate search show search.yaml`")
def show(path: SearchPath, as_json: Json = False) -> None:
    """Show the trials so far, the best of each size, and the test scores of the best."""
    from flows import search_results, search_space
    from flows.search import open_study
    from flows.search_folders import SearchFolders

    root = project_root()
    search = search_space.read(path)
    study = open_study(root, path.stem, search)
    values = search_results.as_values(study, search, SearchFolders(root, path.stem))
    if as_json:
        print_json(values)
    else:
        _show(values, path.stem, search_results.write_picture(values, root, path.stem))


@app.command(
    epilog="Examples: `cohobate search apply search.yaml` · `cohobate search apply search.yaml 7`"
)
def apply(
    path: SearchPath,
    which: Annotated[str, typer.Argument(metavar="TRIAL", help="Its number, or `best`.")] = "best",
) -> None:
    """Write the settings of a trial into params.yaml."""
    from flows import overrides, search_results, search_space
    from flows.search import open_study

    root = project_root()
    search = search_space.read(path)
    try:
        settings = search_results.settings_of(open_study(root, path.stem, search), search, which)
    except KeyError:
        raise UserError(
            f"the search has no trial {which!r}",
            where=str(path),
            fix=f"cohobate search show {path}",
        ) from None
    options = search_space.as_options(search.settings | settings)
    for change in overrides.apply(root, options, search.recipe):
        out.print(f"params.yaml: {plain(change)}", highlight=False)


def _say(one: "TrialResult", study: "SearchStudy", search: "Search") -> None:
    """Print a line about a trial that has ended."""
    best = study.best()
    score = "failed" if one.failed else "pruned" if one.dev is None else f"dev {one.dev:.3f}"
    leader = f"best {best.dev:.3f} ({best.name})" if best else "none yet"
    err.print(
        f"{one.name}  {score}  {one.figures['seconds']:.0f} s  {plain(search.label(one.drawn))}  "
        f"[dim]{leader}; {_spent(study, search)}[/]",
        highlight=False,
        soft_wrap=True,
    )
    if why := one.figures.get("why"):
        err.print(f"      {plain(why.splitlines()[0])}", style="yellow", highlight=False)


def _spent(study: "SearchStudy", search: "Search") -> str:
    """Return how much of the budget is spent."""
    budget, spent = search.budget, study.spent()
    parts = [f"{len(study.results())} of {budget.trials} trials"]
    if budget.hours:
        parts.append(f"{spent['hours']:.2f} of {budget.hours:g} hours")
    if budget.money:
        parts.append(f"{spent['money']:.2f} of {budget.money:g} US dollars")
    return ", ".join(parts)


def _show(values: dict[str, Any], name: str, picture: Path | None) -> None:
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("trial", "dev", "parameters", "seconds", "what"):
        table.add_column(column, justify="left" if column == "what" else "right")
    front = set(values["front"])
    for one in values["trials"]:
        is_best = one["trial"] == values["best"]
        style = "green" if is_best else "" if one["trial"] in front else "dim"
        dev = "failed" if one["dev"] is None else f"{one['dev']:.3f}"
        if pruned := one.get("pruned"):
            dev = f"pruned at {pruned['per_cent']:.0f} %, {pruned['dev']:.3f}"
        size = f"{one['parameters'] / 1e6:.1f}M" if "parameters" in one else ""
        row = (f"{one['trial']:04d}", dev, size, f"{one.get('seconds', 0):.0f}")
        table.add_row(*row, plain(one["label"]), style=style)
    out.print(table)
    out.print("not dimmed: no smaller student is better on the dev rows", style="dim")
    stages = ", ".join(f"{count} {outcome}" for outcome, count in values["stages"].items())
    out.print(f"stages  {stages}", highlight=False)
    if test := values["test"]:
        out.print(_test_line(test), highlight=False)
    if picture:
        out.print(f"picture {picture}", highlight=False)
    out.print(f"more    dvc exp show · cohobate search apply {name}.yaml best", highlight=False)


def _test_line(test: dict[str, Any]) -> str:
    line = (
        f"test    trial {test['trial']:04d} {test['best']['score']:.3f}, "
        f"params.yaml as it is {test['default']['score']:.3f}, "
        f"teacher {test['teacher']['score']:.3f}"
    )
    if gain := test.get("gain"):
        low, mean, high = (100 * gain[end] for end in ("low", "mean", "high"))
        line += f"; {mean:+.1f} points \\[{low:+.1f}, {high:+.1f}] over params.yaml as it is"
    return line
