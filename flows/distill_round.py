"""One pass over the DAG: a named Prefect task for each stage of dvc.yaml, with the same arrows.

Prefect says when and keeps the record, Ray runs the stage (`flows/placement.py`), DVC decides
whether there is anything to do (`tasks/versioning.py`). After this flow `dvc repro` has nothing to
do, and the other way round.
"""

from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, StateType
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from flows import artifacts, placement
from flows.placement import StageLostError, StageResult
from flows.selection import wanted
from flows.watching import StageStarted, watcher
from tasks import params, schema, versioning
from tasks.errors import UserError
from tasks.progress import Advance, Event
from tasks.resources import Resources
from tasks.versioning import StageNode


def _only_when_lost(task: object, run: object, state: State[StageResult]) -> bool:
    """Retry a stage whose worker died; an error of its own would only come again."""
    return isinstance(state.result(raise_on_failure=False), StageLostError)


# DVC decides what is cached: a hit in Prefect's own cache would restore no files.
@task(cache_policy=NO_CACHE, persist_result=False, retry_delay_seconds=2)
def run_stage(root: Path, node: StageNode, resources: Resources) -> StageResult:
    """Bring one stage up to date on the cluster; its events become logs, progress and artifacts."""
    log, bar, watch = get_run_logger(), artifacts.ProgressBar(node.address), watcher.get()

    def hear(event: Event) -> None:
        watch(node.address, event)
        if isinstance(event, Advance):
            bar.show(event)
        else:
            log.info(event.text)

    watch(node.address, StageStarted())
    try:
        result = placement.run_stage(root, node.address, resources, hear)
    except UserError as error:
        watch(node.address, error)
        log.error("%s", error)
        raise
    log.info("%s in %.1f s, %d files pushed", result.outcome, result.seconds, result.pushed)
    artifacts.show_stage(root, node.address, node.outs, result)
    if node.name == "filter":
        artifacts.show_funnel(root)
    watch(node.address, result)
    return result


@flow(task_runner=ThreadPoolTaskRunner(max_workers=64), persist_result=False, log_prints=False)  # type: ignore[arg-type]
def distill_round(root: Path, only: str | None = None) -> dict[str, StageResult]:
    """Run one round in the workspace `root`: every stage of dvc.yaml that is not up to date.

    Args:
        root: The project's folder, with dvc.yaml and params.yaml.
        only: Stop after this stage and those it waits for (`train@kd`), or a stage's name for all
            of its items (`train`).

    Returns:
        What each stage came to, by its address.

    Raises:
        UserError: params.yaml is wrong, or a stage failed. The flow run is then Failed.
    """
    root = root.absolute()
    document = params.load(root / params.PARAMS)
    schema.check(document)
    nodes = wanted(versioning.stages(root), only)
    resources = {node.address: _resources_of(document, node) for node in nodes}
    placement.check_capacity(resources)
    locked_before = versioning.locked_stages(root)
    futures: dict[str, PrefectFuture[StageResult]] = {}
    for node in nodes:
        asked = resources[node.address]
        named = run_stage.with_options(
            name=node.name,
            task_run_name=node.address.replace("@", " "),
            retries=asked.retries,
            retry_condition_fn=_only_when_lost,
        )
        waits_for = [futures[address] for address in node.upstream if address in futures]
        futures[node.address] = named.submit(root, node, asked, wait_for=waits_for)  # type: ignore[call-overload]
    results, errors = _gather(futures)
    versioning.settle_lock_order(root, locked_before)
    artifacts.show_report(root)
    if errors:
        raise errors[0]
    return results


def _resources_of(document: dict[str, object], node: StageNode) -> Resources:
    asked: dict[str, Resources] = params.validated(
        dict[str, Resources], document["resources"], "resources"
    )
    return asked.get(node.address) or asked.get(node.name) or Resources()  # type: ignore[call-arg]


def _gather(
    futures: dict[str, PrefectFuture[StageResult]],
) -> tuple[dict[str, StageResult], list[Exception]]:
    """Wait for every stage, so that what can finish does; return results and first causes."""
    results: dict[str, StageResult] = {}
    errors: list[Exception] = []
    for address, future in futures.items():
        future.wait()
        outcome = future.result(raise_on_failure=False)
        if isinstance(outcome, StageResult):
            results[address] = outcome
        elif isinstance(outcome, Exception) and future.state.type != StateType.PENDING:
            errors.append(outcome)  # pending: it never ran, for want of what it waits for
    return results, errors
