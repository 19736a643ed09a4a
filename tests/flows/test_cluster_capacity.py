"""A cluster that is too small for a stage or its workers is refused before anything starts."""

from typing import Any

import pytest

from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows.cluster_capacity import check
from flows.resources import Resources
from flows.selection import workers_of


def node(labels: dict[str, str] | None = None, **counts: float) -> dict[str, Any]:
    return {"Resources": counts, "Labels": labels or {}}


CPUS = [node(CPU=8), node(CPU=8)]
GPUS = [*CPUS, node({"accelerator": "eight"}, CPU=64, GPU=8)]
NONE = Resources(cpus=0)


def test_a_stage_that_fits_on_no_node_is_refused() -> None:
    check(CPUS, {"train@kd": Resources(cpus=8)}, {})
    with pytest.raises(UserError, match="no node of the cluster has") as caught:
        check(CPUS, {"train@kd": Resources(cpus=9)}, {})
    assert caught.value.where == "params.yaml, resources.train"


def test_labels_choose_the_nodes() -> None:
    labels = {"accelerator": "eight"}
    check(GPUS, {"train@kd": Resources(cpus=64, labels=labels)}, {})
    with pytest.raises(UserError, match="with the labels"):
        check(CPUS, {"train@kd": Resources(labels=labels)}, {})
    # Ray's own operators are Ray's to check
    check(CPUS, {"train@kd": Resources(labels={"accelerator": "in(a,b)"})}, {})


def test_workers_need_a_slot_each() -> None:
    check(CPUS, {"train@kd": NONE}, {"train@kd": 16})
    with pytest.raises(UserError, match="starts 32 workers, and the cluster has 16 CPU") as caught:
        check(CPUS, {"train@kd": NONE}, {"train@kd": 32})
    assert caught.value.fix == "cohobate run --set train.kd.workers=16, or add nodes"
    # a slot that the stage itself holds is none for them
    with pytest.raises(UserError, match="has 15 CPU") as caught:
        check(CPUS, {"train@kd": Resources(cpus=1)}, {"train@kd": 16})
    assert "workers=8" in str(caught.value.fix)
    # where there are GPUs each worker takes one
    with pytest.raises(UserError, match="has 8 GPU"):
        check(GPUS, {"train@kd": NONE}, {"train@kd": 16})


def test_stages_that_start_several_workers() -> None:
    document = {"train": {"kd": {"workers": 4}, "sft": {}}, "filter": {"workers": 1}, "seeds": [1]}
    names = ("train@kd", "train@sft", "filter", "collect")
    nodes = [StageNode(name, name.partition("@")[0], (), ()) for name in names]
    assert workers_of(nodes, document) == {"train@kd": 4}
