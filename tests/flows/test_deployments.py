"""A deployment's form is made of the models behind params.yaml; its values reach a round."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import (
    ConcurrencyLimitStrategy,
    ConcurrencyOptions,
    FlowRun,
)
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import EventTrigger
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Running
from prefect.utilities.callables import parameter_schema

from cohobate import params
from cohobate.errors import UserError
from cohobate.params import ParamsError
from flows import deployments, overrides, params_schema, routing, services_cli
from flows.console import StoppedError
from flows.iterate_rounds import Params, iterate_rounds
from flows.round_history import History
from tests.flows import quick_project

ROOT = Path(__file__).parents[2]
FORM = set(params_schema.sections()) - {"recipe"}  # that section is written, not set


@contextmanager
def client_of(url: str) -> Iterator[SyncPrefectClient]:
    """Talk to this server, not to the one that Prefect would start for itself."""
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        yield client


def test_every_section_of_params_yaml_is_in_the_form() -> None:
    form = parameter_schema(iterate_rounds).model_dump()
    offered = form["definitions"]["Params"]["properties"]
    assert set(offered) == FORM
    mine = form["definitions"]["HardExamplesParams"]["properties"]
    assert mine["rows"]["type"] == "integer"
    assert "description" in mine["rows"]


def test_what_the_form_sets_is_laid_over_params_yaml(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    before = params.load(tmp_path / "params.yaml")
    wished = Params.model_validate({"hard_examples": {"rows": 7}, "rounds": {"stop": {"hours": 3}}})
    changes = overrides.apply_model(tmp_path, wished)
    assert changes == ["hard_examples.rows: 0 -> 7", "rounds.stop.hours: (default) -> 3.0"]
    after = params.load(tmp_path / "params.yaml")
    assert after["rounds"] == before["rounds"] | {"stop": before["rounds"]["stop"] | {"hours": 3}}
    assert {k: v for k, v in after.items() if k not in ("hard_examples", "rounds")} == {
        k: v for k, v in before.items() if k not in ("hard_examples", "rounds")
    }
    assert overrides.apply_model(tmp_path, wished) == []  # a round that died is taken up


def test_what_the_whole_refuses_changes_nothing(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("hard_examples: {", "hard_exmaples: {")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="exmaples"):
        overrides.apply_model(tmp_path, Params.model_validate({"seeds": [1, 2]}))
    assert (tmp_path / "params.yaml").read_text() == text


@pytest.mark.round
def test_a_server_holds_the_form_and_refuses_what_it_does_not_allow(prefect_server: str) -> None:
    with client_of(prefect_server) as client:
        flow = client.create_flow(iterate_rounds)
        made = client.create_deployment(
            flow, name="form", enforce_parameter_schema=True,
            parameter_openapi_schema=parameter_schema(iterate_rounds).model_dump(),
        )  # fmt: skip
        held: dict[str, Any] = client.read_deployment(made).parameter_openapi_schema
        assert set(held["definitions"]["Params"]["properties"]) == FORM
        fine = {"changes": {"rounds": {"stop": {"hours": 3}}, "seeds": [1, 2]}}
        run = client.create_flow_run_from_deployment(made, parameters=fine)
        assert run.parameters["changes"] == fine["changes"]
        for wrong in ({"seeds": "many"}, {"mien": {}}, {"rounds": {"stop": {"hours": -1}}}):
            with pytest.raises(PrefectHTTPStatusError, match="Validation failed"):
                client.create_flow_run_from_deployment(made, parameters={"changes": wrong})


@pytest.mark.round
def test_kept_prompts_start_a_round(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    document = params.parse((ROOT / "infra/prefect.yaml").read_text(), "infra/prefect.yaml")
    spelt = document["deployments"][0]["triggers"][0]
    names = ("match", "expect", "posture", "threshold")
    trigger = EventTrigger(**{name: spelt[name] for name in names}, within=timedelta(0))
    with client_of(prefect_server) as client:
        made = client.create_deployment(client.create_flow(iterate_rounds), name="arrived")
        action = RunDeployment(source="selected", deployment_id=made)
        automation = Automation(name="arrived", trigger=trigger, actions=[action]).create()
        of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[made]))
        assert routing.send_event(tmp_path, {"file": "prompts-000001.jsonl", "prompts": 1000})
        deadline = time.monotonic() + 60
        while not client.read_flow_runs(flow_run_filter=of_it):
            assert time.monotonic() < deadline, "no run was started"
            time.sleep(0.2)
        client.request("DELETE", "/automations/{id}", path_params={"id": automation.id})
        client.delete_deployment(made)


@pytest.mark.round
def test_a_schedule_makes_runs(prefect_server: str) -> None:
    """Prefect's scheduler is a service apart, which can fail while all else works."""
    every_minute = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(minutes=1))
    )
    with client_of(prefect_server) as client:
        flow = client.create_flow(iterate_rounds)
        made = client.create_deployment(flow, name="often", schedules=[every_minute])
        deadline = time.monotonic() + 90  # it looks every minute
        while not client.get_scheduled_flow_runs_for_deployments([made]):
            assert time.monotonic() < deadline, "no run was scheduled"
            time.sleep(1)
        client.delete_deployment(made)


@pytest.fixture
def deployed(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A server with `nightly`, which cancels a second run, and `on-demand`, which queues it."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    with client_of(prefect_server) as client:
        flow = client.create_flow_from_name("iterate-rounds")
        for name, strategy in (("nightly", "CANCEL_NEW"), ("on-demand", "ENQUEUE")):
            options = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(strategy))
            client.create_deployment(flow, name, concurrency_limit=1, concurrency_options=options)
        yield client


def test_a_run_that_is_at_work_is_followed_instead_of_cancelling_a_second(
    deployed: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = quick_project.build(tmp_path)
    monkeypatch.chdir(project)
    monkeypatch.setattr(services_cli, "_deployments", lambda: deployments)
    assert deployments.active_run("nightly") is None
    run = deployments.trigger("nightly", {})
    deployed.set_flow_run_state(run.id, Running(), force=True)
    active = deployments.active_run("nightly")
    assert active and active.id == run.id
    History(project).open()

    def end(*arguments: Any) -> FlowRun:
        deployed.set_flow_run_state(run.id, Completed(), force=True)
        return follow(*arguments)

    follow = deployments.follow
    monkeypatch.setattr(deployments, "follow", end)
    with History(project).exclusive():
        services_cli.trigger("nightly", wait=True)
    output = capsys.readouterr()
    assert "a run of nightly is in progress" in output.err and "--follow" in output.err
    assert "round-0001 in" in output.err and run.name in output.out and "Completed" in output.out
    assert [r.id for r in deployed.read_flow_runs() if r.deployment_id == run.deployment_id] == [
        run.id
    ]


def test_stopping_to_wait_says_that_the_run_goes_on(
    deployed: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(quick_project.build(tmp_path))
    monkeypatch.setattr(services_cli, "_deployments", lambda: deployments)

    def stopped(*arguments: Any) -> FlowRun:
        raise KeyboardInterrupt

    monkeypatch.setattr(deployments, "follow", stopped)
    with pytest.raises(StoppedError, match="continues on its worker") as error:
        services_cli.trigger("on-demand", wait=True)
    assert "trigger on-demand --follow" in error.value.fix
    with pytest.raises(UserError, match="there is no deployment 'nihgtly'"):
        services_cli.trigger("nihgtly")
