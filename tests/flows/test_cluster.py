"""A round on two nodes without a shared disk ends in the same dvc.lock, byte for byte."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_project
from tests.flows import cluster
from tests.tiny_project import outcomes, run

pytestmark = pytest.mark.cluster

SECOND = ("generate", "train", "evaluate")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_project.build_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def store() -> Iterator[cluster.S3]:
    with cluster.s3() as server:
        yield server


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("nodes")
    with cluster.two_nodes(folder) as address:
        yield address, folder


def project(folder: Path, teacher: Path, store: cluster.S3, name: str) -> Path:
    root = tiny_project.build(folder / name, teacher)
    remote = ["dvc", "remote", "add", "--default", "s3", f"s3://bucket/{name}"]
    for command in (
        remote,
        ["dvc", "remote", "modify", "s3", "endpointurl", store.url],
        ["dvc", "remote", "modify", "s3", "verify", "true"],
    ):
        assert run(root, *command).returncode == 0
    return root


def test_two_nodes_without_a_shared_disk_write_the_lock_of_one_machine(
    tmp_path: Path, teacher: Path, store: cluster.S3, nodes: tuple[str, Path]
) -> None:
    alone = tiny_project.build(tmp_path / "alone", teacher)
    assert run(alone, "dvc", "repro").returncode == 0
    address, folder = nodes
    apart = project(tmp_path, teacher, store, "apart")
    asked = {name: f"resources.{name}={{custom: {{second: 1}}}}" for name in SECOND}
    options = [word for setting in asked.values() for word in ("--set", setting)]
    where = cluster.CREDENTIALS | {"RAY_ADDRESS": address}
    first = outcomes(apart, "--workspace", "isolated", *options, **where)
    assert set(first.values()) == {"ran"}
    assert (apart / "dvc.lock").read_bytes() == (alone / "dvc.lock").read_bytes()
    assert not (apart / "models/train").exists()  # the driver never had the weights
    for name, stage in (("head", "capture@main"), ("second", "train@kd")):
        assert list((folder / name).glob(f"*/{stage}")), f"{stage} ran on another node"
    second = outcomes(apart, "--workspace", "isolated", **where)
    assert set(second.values()) == {"unchanged"}
