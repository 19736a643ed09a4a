"""Deployments on a Prefect server, for `cohobate deploy` and `cohobate trigger`."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, FlowRun, Log, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import LogSort
from prefect.deployments import run_deployment
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound

from cohobate.errors import UserError

PREFECT_YAML = "infra/prefect.yaml"
FLOW_OF = {"in-place": "distill-round", "search": "search"}
"""Flows of the deployments; all others are of `iterate-rounds`."""
_AUTOMATIONS = "cohobate: "
"""How the names of the project's automations start."""
_OF_RUNS = ("prefect.flow_runs", "prefect.task_runs")
HEARTBEAT_TIMEOUT = timedelta(seconds=90)
"""A run without a heartbeat for so long counts as crashed; a run sends one every 30 s."""


def deploy(root: Path) -> list[str]:
    """Create or update every deployment and automation; return their names.

    Raises:
        UserError: Prefect refuses one.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    command += ["--prefect-file", PREFECT_YAML]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        output = "\n".join(f"{done.stdout}\n{done.stderr}".strip().splitlines()[-5:])
        raise UserError(
            f"prefect deploy failed: {output}", where=PREFECT_YAML, fix="cohobate doctor"
        )
    automations = _automations()
    _delete_automations()
    return [*_deployments(), *(_create(automation) for automation in automations)]


def trigger(name: str, parameters: dict[str, Any]) -> FlowRun:
    """Start a run of a deployment; return it at once.

    Raises:
        UserError: there is no such deployment.
    """
    deployment = _deployment(name)
    return run_deployment(deployment.id, parameters=parameters, timeout=0)  # type: ignore[return-value]


def active_run(name: str) -> FlowRun | None:
    """Return the run of a deployment that is in progress or about to start; None without one.

    Raises:
        UserError: there is no such deployment.
    """
    active = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED]
    due = datetime.now(UTC) + timedelta(seconds=1)
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[_deployment(name).id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=active)),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=due),
    )
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted)
    rank = {kind: place for place, kind in enumerate(active)}
    return min(runs, key=lambda run: rank[run.state_type or StateType.SCHEDULED], default=None)


def cancels_second_run(name: str) -> bool:
    """Return whether a deployment cancels a second run instead of queueing it.

    Raises:
        UserError: there is no such deployment.
    """
    options = _deployment(name).concurrency_options
    return bool(options and options.collision_strategy == ConcurrencyLimitStrategy.CANCEL_NEW)


def _deployment(name: str) -> DeploymentResponse:
    flow = FLOW_OF.get(name, "iterate-rounds")
    try:
        with get_client(sync_client=True) as client:
            return client.read_deployment_by_name(f"{flow}/{name}")
    except ObjectNotFound:
        raise UserError(
            f"there is no deployment {name!r}",
            where=os.environ.get("PREFECT_API_URL", ""),
            fix="cohobate deploy",
        ) from None


def follow(run: FlowRun, print_line: Callable[[str], None]) -> FlowRun:
    """Wait until a run ends; print the log lines of its flows and stages as they appear.

    A stage's line starts with its name. Lines of the Prefect worker are left to the UI.
    """
    seen: set[UUID] = set()
    names: dict[UUID | None, str] = {None: ""}
    with get_client(sync_client=True) as client:
        while True:
            now = client.read_flow_run(run.id)
            for line in sorted(asyncio.run(_lines(run)), key=lambda line: line.timestamp):
                if line.id not in seen and line.name in _OF_RUNS:
                    if line.task_run_id and line.task_run_id not in names:
                        names[line.task_run_id] = client.read_task_run(line.task_run_id).name
                    print_line(f"{names[line.task_run_id]:<14}  {line.message}")
                seen.add(line.id)
            if now.state and now.state.is_final():
                return now
            time.sleep(1)


async def _lines(run: FlowRun) -> list[Log]:
    """Return the newest lines of a run and of the flow runs below it."""
    async with get_client() as client:
        below = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
        runs = [run.id, *(child.id for child in await client.read_flow_runs(flow_run_filter=below))]
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=runs))
        return await client.read_logs(wanted, limit=200, sort=LogSort.TIMESTAMP_DESC)


def _deployments() -> list[str]:
    with get_client(sync_client=True) as client:
        return sorted(deployment.name for deployment in client.read_deployments())


def _automations() -> list[Automation]:
    """Return the automations with which the server handles runs that crash."""
    with get_client(sync_client=True) as client:
        after_crash = client.read_deployment_by_name("iterate-rounds/after-crash").id
        rounds = [found.id for found in client.read_deployments() if "rounds" in found.tags]
    every_run = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
    of_rounds = ResourceSpecification(  # not their subflows, which have the tags of the run too
        {
            "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in rounds],
            "prefect.resource.role": "deployment",
        }
    )
    ends = {f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")}
    return [
        Automation(
            name=f"{_AUTOMATIONS}a run without a heartbeat has crashed",
            description="Its process has died: it must not occupy the slot of the next round.",
            trigger=EventTrigger(
                posture=Posture.Proactive,
                match=every_run,
                for_each={"prefect.resource.id"},
                after={"prefect.flow-run.heartbeat"},
                expect={"prefect.flow-run.heartbeat", *ends},
                threshold=1,
                within=HEARTBEAT_TIMEOUT,
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED, message="no heartbeat: the process has died"
                )
            ],
        ),
        Automation(
            name=f"{_AUTOMATIONS}a crashed round is resumed once",
            description="By the deployment after-crash, which has no tag `rounds`: only once.",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                match=every_run,
                match_related=of_rounds,
                expect={"prefect.flow-run.Crashed"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[RunDeployment(source="selected", deployment_id=after_crash)],
        ),
    ]


def _delete_automations() -> None:
    """Delete what an earlier `deploy` created, whatever its version called it."""
    with get_client(sync_client=True) as client:
        listed = client.request("POST", "/automations/filter", json={"limit": 200}).json()
        for old in listed:
            if old["name"].startswith(_AUTOMATIONS):
                client.request("DELETE", "/automations/{id}", path_params={"id": old["id"]})


def _create(automation: Automation) -> str:
    made = automation.create()
    return made.name if isinstance(made, Automation) else automation.name


def parameters_of(text: str | None) -> dict[str, Any]:
    """Read the parameters of a run, given as JSON.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        parameters = json.loads(text or "{}")
    except ValueError as error:
        parameters = error
    if not isinstance(parameters, dict):
        raise UserError(
            f"--params: not a JSON object: {parameters}", fix="--params '{\"rounds\": 2}'"
        )
    return parameters
