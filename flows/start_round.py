"""`cohobate run`: start a round from a terminal, and print its result."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from cohobate import params
from cohobate.dvc_bridge import versioning
from cohobate.dvc_bridge.leftovers import drop_leftovers
from cohobate.dvc_bridge.stale_lock import drop_stale_lock
from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows import params_schema, recipes
from flows.code_changes import check_reruns, refresh_fingerprints
from flows.console import plain
from flows.plan import Planned, plan
from flows.resources import Resources
from flows.selection import resources_for, select_stages
from flows.services import use_services
from flows.tracking import trackers
from flows.workspaces import WorkspaceKind


def run_round(
    root: Path,
    only: str | None,
    console: Console,
    workspace: WorkspaceKind = "shared",
    *,
    rerun_code: bool = False,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Run `distill_round` in this process: with Prefect's server, Ray and a display.

    `rerun_code`: long stages run again even where nothing but their code changed. `changes`: the
    settings that this run was started with, for its name in the Prefect UI.

    Returns:
        `stages` (address -> outcome, seconds), `metrics`, and `gate_passed` (None without metrics).
    """
    document = params.load(root / params.PARAMS)
    params_schema.check(document)  # before anything is started
    trackers.check(trackers.named_in(document))
    drop_stale_lock(root)
    graph = versioning.stages(root)
    for path in drop_leftovers(root, graph):
        console.print(f"{path} removed: no stage writes it any more; DVC's cache keeps a copy")
    nodes = select_stages(graph, only)
    refresh_fingerprints(root)
    if workspace == "shared" and not versioning.reasons(root):  # nothing to start two servers for
        versioning.sort_lock(root, graph)  # a round may have been killed before it did
        return _outcome(root, only, {node.address: ("unchanged", 0.0) for node in nodes})
    planned = plan(root, only)
    if not rerun_code:
        check_reruns(root, planned)
    configure_prefect(root)
    show_duration(root, only, console, planned)
    console.print("starting Prefect and Ray", style="dim")
    with shown(console, nodes), _started(root, resources_for(nodes, document), workspace):
        from flows.distill_round import named_round

        name = " ".join([_recipe_of(document), *changes])
        results = named_round(name)(root, only, workspace)
    return _outcome(root, only, {a: (r.outcome, r.seconds) for a, r in results.items()})


def _recipe_of(document: Mapping[str, Any]) -> str:
    """Return the names of the recipes that params.yaml was last written with."""
    return "+".join(Path(file).stem for file in recipes.files_of(document)) or "round"


def show_duration(
    root: Path, only: str | None, console: Console, planned: Sequence[Planned]
) -> None:
    """Print how long the stages that are not up to date will take on this machine."""
    from flows.time_estimate import estimate_time

    nodes = select_stages(versioning.stages(root), only)
    changed = {stage.address for stage in planned if stage.state != "up to date"}
    for line in estimate_time(nodes, params.load(root / params.PARAMS), changed, root):
        console.print(line, highlight=False, soft_wrap=True)


def show_memory(root: Path, console: Console, planned: Sequence[Planned]) -> None:
    """Print what the stages that are not up to date need of their devices, and what would fit."""
    from flows.memory_estimate import estimate_memory
    from tasks.preflight.memory_table import table_lines

    changed = {stage.address for stage in planned if stage.state != "up to date"}
    if not changed:
        return
    try:
        estimates = [one for one in estimate_memory(root) if one.stage in changed]
    except UserError as error:  # a model that is not here yet: the round fetches it
        console.print(f"memory: unknown before the round: {error.what}", highlight=False)
        return
    for line in table_lines(estimates):
        console.print(plain(line), highlight=False, soft_wrap=True)


def _outcome(root: Path, only: str | None, stages: dict[str, tuple[str, float]]) -> dict[str, Any]:
    figures = metrics(root) if only in (None, "evaluate", "export") else None
    return {
        "stages": {a: {"outcome": outcome, "seconds": s} for a, (outcome, s) in stages.items()},
        "metrics": figures,
        "gate_passed": figures["gate"]["passed"] if figures else None,
    }


def metrics(root: Path) -> dict[str, Any] | None:
    """Return the last round's metrics, or None where no round was evaluated."""
    path = root / "reports/metrics.json"
    figures: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return figures


def show_outcome(root: Path, outcome: dict[str, Any], console: Console) -> None:
    """Print how a round ended, and where its report is."""
    if all(stage["outcome"] == "unchanged" for stage in outcome["stages"].values()):
        console.print("everything is up to date: no param, input or code has changed")
    if outcome["metrics"] is None:
        return
    show_verdict(outcome["metrics"], console)
    console.print(f"report  {root / 'reports/report.html'}", highlight=False)
    console.print("more    cohobate ui   (the Prefect UI over this round)", highlight=False)


def show_verdict(figures: dict[str, Any], console: Console) -> None:
    """Print the four rows and whether distillation beat the baseline."""
    from rich.table import Table

    from cohobate.evaluation.score_text import ScoreText

    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for column in ("", "score", "of the teacher's"):
        table.add_column(column, justify="left" if not column else "right")
    text = ScoreText(figures["metric"])
    for name in ("teacher", "initial", "baseline", "baseline_best", "student"):
        if name not in figures:  # the baseline keeps no best checkpoint
            continue
        pair = [figures[name]["score"], figures["teacher"]["score"]]
        above, below = reversed(pair) if text.lower_is_better else pair
        label = name.replace("_best", ", best on dev")
        table.add_row(label, f"{pair[0]:.3f}", f"{above / max(below, 1e-9):.0%}")
    gain = figures["gain_over_baseline"]
    passed = figures["gate"]["passed"]
    console.print(table)
    console.print(
        f"[{'green' if passed else 'red'}]{'gate met' if passed else 'gate not met'}[/]: "
        f"{100 * gain['mean']:+.1f} {text.gain_unit} over the equal-updates baseline "
        f"\\[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]",
        highlight=False,
    )
    if gain := figures.get("gain_over_baseline_best"):
        console.print(
            f"  {100 * gain['mean']:+.1f} {text.gain_unit} over the baseline's best on dev "
            f"\\[{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]",
            highlight=False,
        )


def configure_prefect(root: Path) -> None:
    """Choose Prefect's server, and send Prefect's log lines to it instead of the terminal."""
    use_services(root)
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "INFO")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    # Ctrl-C on a terminal also ends Prefect's server: errors of sending to it are expected.
    os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")


@contextmanager
def shown(console: Console, nodes: list[StageNode]) -> Iterator[None]:
    """Show on the terminal what happens to a round's stages."""
    from flows.events import event_handler
    from flows.terminal import RoundOnTerminal

    with RoundOnTerminal(console, [node.address for node in nodes]) as screen:
        token = event_handler.set(screen)
        try:
            yield
        finally:
            event_handler.reset(token)


@contextmanager
def _started(
    root: Path, resources: dict[str, Resources], workspace: WorkspaceKind
) -> Iterator[None]:
    """Start Prefect's server and Ray in parallel: each takes seconds of waiting."""
    from flows.placement import ray_cluster

    with ThreadPoolExecutor(1) as thread:
        server = thread.submit(_start_prefect)
        with ray_cluster(root, resources, workspace):
            server.result()
            yield


def _start_prefect() -> None:
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            client.hello()
    except Exception as error:  # of httpx, or Prefect's own where its server times out
        first = next(iter(str(error).splitlines()), type(error).__name__)
        fix = "cohobate doctor; on a busy machine it may time out: then repeat the command"
        raise UserError(f"Prefect did not start: {first}", fix=fix) from error
