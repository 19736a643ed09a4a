"""The flow of one round: a Prefect task for each stage of dvc.yaml, with the same dependencies.

Prefect schedules and records, Ray runs the stage (`flows/placement.py`), DVC decides whether there
is anything to do (`cohobate/dvc_bridge/versioning.py`). After this flow `dvc repro`
has nothing to do, and the other way round.
"""

from pathlib import Path
from typing import Any

from prefect import Flow, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from cohobate import params
from cohobate.data.records import ANSWER_SIGNALS
from cohobate.dvc_bridge import storage, versioning
from cohobate.dvc_bridge.leftovers import drop_leftovers
from cohobate.dvc_bridge.versioning import StageNode
from cohobate.progress import Advance, Event
from cohobate.terminal import StageLog
from flows import artifacts, cluster_capacity, params_schema, placement, stage_seconds
from flows.api_keys import keys_for
from flows.events import StageStarted, event_handler
from flows.placement import StageLostError, StageResult
from flows.resources import Resources
from flows.selection import engines_of, nearest_upstream, resources_for, select_stages, workers_of
from flows.tracking.round_tracking import tracked
from flows.workspaces import WorkspaceKind
from tasks.evaluate.report import render


def _only_when_lost(task: object, run: object, state: State[StageResult]) -> bool:
    """Retry a stage whose worker died; an error of its own would only repeat."""
    return isinstance(state.result(raise_on_failure=False), StageLostError)


# DVC decides what is cached: a hit in Prefect's own cache would restore no files.
@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=2)
def run_stage(
    root: Path, node: StageNode, resources: Resources, workspace: WorkspaceKind = "shared"
) -> StageResult:
    """Bring one stage up to date on the cluster; its events become logs, progress and artifacts."""
    log, bar, emit = get_run_logger(), artifacts.ProgressBar(node.address), event_handler.get()
    emit(node.address, StageStarted())
    try:
        keys = keys_for(node, params.load(root / params.PARAMS))
        with StageLog(log.info) as stage_log:

            def on_event(event: Event) -> None:
                emit(node.address, event)
                stage_log(event)
                if isinstance(event, Advance):
                    bar.show(event)

            where = root, node.address, resources
            result = placement.run_stage(*where, on_event, workspace, keys=keys)
    except Exception as error:
        emit(node.address, error)
        log.error("%s", error)
        raise
    log.info("%s in %.1f s, %d files pushed", result.outcome, result.seconds, result.pushed)
    # at once: the report of a round that is killed and resumed has all times
    stage_seconds.record(root, node.address, result)
    artifacts.show_stage(node.address, result)
    # on an isolated node the files are on the remote alone
    if node.name == "filter":
        storage.pull_outputs(root, [node.address])
        artifacts.show_funnel(root)
    emit(node.address, result)
    return result


@flow(task_runner=ThreadPoolTaskRunner(max_workers=64), persist_result=False, log_prints=False)  # type: ignore[arg-type]
def distill_round(
    root: Path, only: str | None = None, workspace: WorkspaceKind = "shared"
) -> dict[str, StageResult]:
    """Run one round in the workspace `root`: every stage of dvc.yaml that is not up to date.

    Args:
        root: Folder of the project, with dvc.yaml and params.yaml.
        only: Last stage to run: one stage (`train@kd`), or all items of one (`train`). All stages
            when not given.
        workspace: `isolated` where the nodes of the cluster share no disk with `root`: files then
            travel through the DVC remote.

    Returns:
        The result of each stage, by its address.

    Raises:
        UserError: params.yaml is wrong, or a stage failed. The flow run is then Failed.
    """
    root = root.absolute()
    document = params.load(root / params.PARAMS)
    params_schema.check(document)
    graph = versioning.stages(root)
    for path in drop_leftovers(root, graph):
        get_run_logger().info(
            "%s removed: no stage writes it any more; DVC's cache keeps a copy", path
        )
    nodes = select_stages(graph, only)
    with tracked(root, document, get_run_logger().warning) as tracking:
        results, errors = _run_stages(root, nodes, document, workspace)
        versioning.sort_lock(root, graph)  # also of a failed round: its next run may do nothing
        if errors:
            raise errors[0]
        if "evaluate" in results:
            _publish(root, nodes)
            tracking.add_scores()
    return results


def _run_stages(
    root: Path, nodes: list[StageNode], document: dict[str, Any], workspace: WorkspaceKind
) -> tuple[dict[str, StageResult], list[Exception]]:
    """Run the stages on the cluster; return results, and the errors of those that failed."""
    resources = resources_for(nodes, document)
    with placement.ray_cluster(root, resources, workspace):
        cluster_capacity.check(
            placement.alive_nodes(),
            resources,
            workers_of(nodes, document),
            engines_of(nodes, document),
            document["resources"] or {},
        )
        try:
            return _gather(_submit(root, nodes, resources, workspace))
        except BaseException:  # Ctrl-C, or cancelled in the UI: the remote work must stop too
            placement.stop_all()
            raise


def _publish(root: Path, nodes: list[StageNode]) -> None:
    """Write the report of an evaluated round, and show it in the Prefect UI."""
    read = [node.address for node in nodes if _in_report(node)]
    storage.pull_outputs(root, read, without=str(ANSWER_SIGNALS))
    render(root)  # no stage: the report also shows this run's times, which no hash may cover
    artifacts.show_report(root)
    artifacts.show_losses(root)
    artifacts.show_samples(root)


def named_round(name: str) -> Flow[..., dict[str, StageResult]]:
    """Return the flow of a round whose run has this name in the Prefect UI."""
    # Prefect fills in what stands in braces, as in values of settings
    escaped = name.replace("{", "{{").replace("}", "}}")
    return distill_round.with_options(flow_run_name=escaped)


def _in_report(node: StageNode) -> bool:
    """Return whether the report reads a stage's outputs: small files, never weights or signals."""
    small = all(out.startswith(("data/", "reports/")) for out in node.outs)
    return small and node.name != "capture"


def _submit(
    root: Path, nodes: list[StageNode], resources: dict[str, Resources], workspace: WorkspaceKind
) -> dict[str, PrefectFuture[StageResult]]:
    """Submit every stage to Prefect with its dependencies; independent stages run in parallel."""
    futures: dict[str, PrefectFuture[StageResult]] = {}
    upstream = nearest_upstream(nodes)
    for node in nodes:
        needs = resources[node.address]
        stage = run_stage.with_options(
            name=node.name,
            task_run_name=node.address.replace("@", " "),
            retries=needs.retries,
            retry_condition_fn=_only_when_lost,
        )
        waits_for = [futures[address] for address in upstream[node.address]]
        futures[node.address] = stage.submit(root, node, needs, workspace, wait_for=waits_for)  # type: ignore[call-overload]
    return futures


def _gather(
    futures: dict[str, PrefectFuture[StageResult]],
) -> tuple[dict[str, StageResult], list[Exception]]:
    """Wait for every stage, also after a failure; return results, and the errors of failed ones."""
    results: dict[str, StageResult] = {}
    errors: list[Exception] = []
    for address, future in futures.items():
        # all are waited for: independent stages still finish, and are kept
        future.wait()
        if future.state.type == StateType.PENDING:
            continue  # never ran: a stage that it depends on failed
        outcome = future.result(raise_on_failure=False)
        if isinstance(outcome, StageResult):
            results[address] = outcome
        elif isinstance(outcome, Exception):
            errors.append(outcome)
    return results, errors
