"""The files that describe a cluster hold together, and keep to loopback and least privilege."""

import inspect
import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML

INFRA = Path(__file__).parents[2] / "infra"


def documents(name: str) -> list:
    return [*YAML(typ="safe", pure=True).load_all(INFRA / name)]


DEPLOYMENTS = documents("prefect.yaml")[0]["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_a_deployment_names_a_flow_and_parameters_that_it_has(deployment: dict) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    assert set(deployment["parameters"]) <= set(inspect.signature(flow.fn).parameters)
    assert deployment["concurrency_limit"]["limit"] == 1


def test_both_collision_strategies_and_both_kinds_of_schedule_are_there() -> None:
    strategies = {d["concurrency_limit"]["collision_strategy"] for d in DEPLOYMENTS}
    schedules = [schedule for d in DEPLOYMENTS for schedule in d.get("schedules", [])]
    assert strategies == {"ENQUEUE", "CANCEL_NEW"}
    assert {kind for s in schedules for kind in s if kind in ("cron", "interval")} == {
        "cron",
        "interval",
    }


def test_compose_listens_on_loopback_and_holds_no_secret() -> None:
    text = (INFRA / "compose.yaml").read_text()
    (compose,) = documents("compose.yaml")
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for name in ("PREFECT_AUTH", "POSTGRES_PASSWORD", "RAY_TOKEN", "S3_USER", "S3_PASSWORD"):
        assert f"${{{name}:?" in text  # refused when it is not given
        assert re.search(rf"^{name}=$", (INFRA / "compose.env.example").read_text(), re.M)


def test_what_compose_and_kubernetes_start_exists() -> None:
    (compose,) = documents("compose.yaml")
    for service in compose["services"].values():
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"]
    kinds = [
        d["kind"] for name in ("raycluster", "rounds") for d in documents(f"kubernetes/{name}.yaml")
    ]
    assert kinds == ["RayCluster", "Deployment", "PersistentVolumeClaim"]
    (ray,) = documents("kubernetes/raycluster.yaml")
    installed = import_module("ray").__version__
    assert ray["spec"]["rayVersion"].split(".")[:2] == installed.split(".")[:2]


def test_the_s3_policy_grants_no_deletion_and_no_other_prefix() -> None:
    policy = json.loads((INFRA / "s3-policy.json").read_text())
    for statement in policy["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            assert "*" not in action
            assert "Delete" not in action
        assert statement["Resource"].endswith(("BUCKET", "BUCKET/cohobate/*"))
