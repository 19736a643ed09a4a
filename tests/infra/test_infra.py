"""The files that describe a cluster hold together, and keep to loopback and least privilege."""

import inspect
import json
import re
import subprocess
from collections.abc import Iterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel, RawScheduleConfig
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


def refusals(schema: dict[str, Any], document: Any) -> list[str]:
    kind = jsonschema.validators.validator_for(schema)
    return [f"{[*e.path]}: {e.message}" for e in kind(schema).iter_errors(document)]


def test_compose_is_what_the_compose_specification_asks_for() -> None:
    vendored = files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
    schema = json.loads(vendored.read_text())
    (compose,) = documents("compose.yaml")
    assert refusals(schema, compose) == []
    compose["services"]["prefect"]["prots"] = []
    assert refusals(schema, compose)


def test_the_ray_cluster_is_what_rays_own_schema_asks_for() -> None:
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    (cluster,) = documents("ray-cluster.yaml")
    assert refusals(schema, cluster) == []
    assert refusals(schema, cluster | {"max_worker": 4})


def known_options(command: str, known: set[str]) -> None:
    for word in re.findall(r"--[a-z-]+", command):
        assert word in known, f"ray start has no {word}"


def test_what_is_said_to_ray_start_are_options_that_it_has() -> None:
    start = import_module("ray.scripts.scripts").start
    known = {name for p in start.params if isinstance(p, click.Option) for name in p.opts}
    (cluster,) = documents("ray-cluster.yaml")
    for command in (*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]):
        known_options(command, known | {"--force"})
    (compose,) = documents("compose.yaml")
    for name in ("ray-head", "ray-worker"):
        known_options(" ".join(compose["services"][name]["command"]), known)
    (ray,) = documents("kubernetes/raycluster.yaml")
    for group in (ray["spec"]["headGroupSpec"], *ray["spec"]["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


def kubernetes_resources() -> Iterator[dict[str, Any]]:
    """Yield what Kubernetes itself knows: KubeRay's own kind by the pods that it is made of."""
    for path in sorted((INFRA / "kubernetes").glob("*.yaml")):
        for document in documents(f"kubernetes/{path.name}"):
            if document["kind"] != "RayCluster":
                yield document
                continue
            spec = document["spec"]
            for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
                name = {"name": group.get("groupName", "head")}
                yield {"apiVersion": "v1", "kind": "Pod", "metadata": name, **group["template"]}


@pytest.mark.parametrize("resource", [*kubernetes_resources()], ids=lambda r: r["metadata"]["name"])
def test_kubernetes_takes_it(resource: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(resource, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(resource | {"sepc": {}}, version, strict=True)


def test_prefect_knows_every_key_of_prefect_yaml() -> None:
    (document,) = documents("prefect.yaml")
    PrefectYamlModel.model_validate(document)
    ours = {"definitions"}  # anchors
    assert set(document) - ours <= fields(PrefectYamlModel)
    for deployment in document["deployments"]:
        DeploymentConfig.model_validate(deployment)
        assert set(deployment) <= fields(DeploymentConfig)
        for schedule in deployment.get("schedules", []):
            RawScheduleConfig.model_validate(schedule)


def fields(model: Any) -> set[str]:
    known = model.model_fields
    return {*known, *(field.alias for field in known.values() if field.alias)}


def test_the_s3_policy_has_the_shape_of_one_and_names_what_s3_can_do() -> None:
    service = import_module("botocore.session").get_session().get_service_model("s3")
    permissions = {"ListBucket", "ListMultipartUploadParts"}  # of ListObjectsV2 and ListParts
    policy = json.loads((INFRA / "s3-policy.json").read_text())
    assert policy.pop("Version") == "2012-10-17" and set(policy) == {"Statement"}
    for statement in policy["Statement"]:
        assert set(statement) - {"Sid", "Condition"} == {"Effect", "Action", "Resource"}
        assert statement["Sid"].isalnum() and statement["Effect"] == "Allow"
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            prefix, _, name = action.partition(":")
            assert prefix == "s3" and name in permissions | set(service.operation_names)


def groups() -> list[dict[str, Any]]:
    (ray,) = documents("kubernetes/raycluster.yaml")
    return [*ray["spec"]["workerGroupSpecs"]]


def test_the_ray_cluster_on_kubernetes_is_what_kuberay_asks_for() -> None:
    schema = json.loads((Path(__file__).parent / "raycluster.schema.json").read_text())
    (cluster,) = documents("kubernetes/raycluster.yaml")
    assert refusals(schema, cluster) == []
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 4
    assert "maxReplica" in refusals(schema, cluster)[0]


def test_pods_with_several_gpus_have_shared_memory_and_a_network_for_nccl() -> None:
    several = 0
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        limits = container["resources"]["limits"]
        if int(limits.get("nvidia.com/gpu", 0)) < 2:
            continue
        several += 1
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        memory = volumes[mounts["/dev/shm"]]["emptyDir"]
        assert memory["medium"] == "Memory"
        # it counts towards the container's memory
        assert int(memory["sizeLimit"].removesuffix("Gi")) < int(
            limits["memory"].removesuffix("Gi")
        )
        assert {"NCCL_SOCKET_IFNAME", "NCCL_DEBUG"} <= {one["name"] for one in container["env"]}
        assert group["labels"]["accelerator"]
    assert several == 1


SBATCH = {"job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "exclusive"}
SBATCH |= {"time", "signal"}


def test_the_slurm_file_has_options_that_slurm_and_ray_know() -> None:
    text = (INFRA / "slurm.sbatch").read_text()
    assert text.startswith("#!/bin/bash\n")
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.M)) <= SBATCH
    start = import_module("ray.scripts.scripts").start
    known = {name for p in start.params if isinstance(p, click.Option) for name in p.opts}
    symmetric = import_module("ray.scripts.symmetric_run").symmetric_run
    known |= {name for p in symmetric.params if isinstance(p, click.Option) for name in p.opts}
    command = text.partition("symmetric-run")[2].partition("\n  -- ")[0]
    assert "--address" in command and "--min-nodes" in command
    known_options(command, known)
    assert not {"--head", "--port", "--block", "--node-ip-address"} & {*command.split()}


def test_the_slurm_file_starts_ray_on_every_machine_and_a_round_on_one(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name, text in {
        "scontrol": 'printf "node-a\\nnode-b\\n"',
        "srun": 'printf "%s\\n" "$RAY_ADDRESS" "${#RAY_AUTH_TOKEN}" "$@"',
    }.items():
        (binaries / name).write_text(f"#!/bin/sh\n{text}\n")
        (binaries / name).chmod(0o755)
    slurm = {"JOB_NODELIST": "node-[a-b]", "JOB_NUM_NODES": "2", "CPUS_PER_TASK": "64"}
    slurm |= {"GPUS_ON_NODE": "8", "SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", str(INFRA / "slurm.sbatch"), "--stage", "train"],
        env={"PATH": f"{binaries}:/usr/bin:/bin", **{f"SLURM_{k}": v for k, v in slurm.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    address, token, *command = done.stdout.split()
    assert (address, token) == ("node-a:6379", "32")
    assert command[1] == "symmetric-run" and command[command.index("--min-nodes") + 1] == "2"
    assert command[-5:] == ["--", ".venv/bin/cohobate", "run", "--stage", "train"]
    assert "--num-gpus=8" in command
