"""A cluster that is too small for a stage or its workers is refused before anything starts."""

from typing import Any

import pytest

from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows.cluster_capacity import check
from flows.resources import Resources
from flows.selection import engines_of, workers_of


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
    assert caught.value.fix == "cohobate run --set resources.train.cpus=8, or add a node"


def test_the_fix_is_what_the_nearest_node_has() -> None:
    needs = {"train@kd": Resources(cpus=2, gpus=2, memory_gb=40, custom={"a100": 1})}
    nodes = [node(CPU=1), node(CPU=4, GPU=1, memory=33.55 * 2**30, a100=1)]
    with pytest.raises(UserError, match="40 GiB of memory") as caught:
        check(nodes, needs, {}, entries=["train@kd"])
    assert caught.value.fix == (
        "cohobate run --set resources.train@kd.gpus=1 --set resources.train@kd.memory_gb=33.5, "
        "or add a node"
    )
    with pytest.raises(UserError) as caught:
        check(nodes, {"evaluate": Resources(labels={"zone": "b"})}, {})
    assert caught.value.fix == "cohobate run --set 'resources.evaluate.labels={}', or add a node"


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


def test_copies_of_a_model_need_gpus_that_are_there() -> None:
    names = ("generate@main", "generate@other", "evaluate", "collect")
    nodes = [StageNode(name, name.partition("@")[0], (), ()) for name in names]
    replicas = {"type": "vllm", "gpus": 2, "stages": 2, "replicas": 3}
    document = {
        "generate": {"backend": replicas, "backends": {"other": {"type": "openai"}}},
        "evaluate": {"backend": {"type": "vllm"}},
    }
    engines = engines_of(nodes, document)
    assert [*engines] == ["generate@main", "evaluate"]
    needs = {"generate@main": NONE}
    with pytest.raises(UserError, match=r"3 copies of a model with 4 GPUs each.* has 8") as caught:
        check(GPUS, needs, {}, engines)
    assert caught.value.fix == "cohobate run --set generate.backend.replicas=2, or add nodes"
    with pytest.raises(UserError, match="the cluster has 0 GPUs") as caught:
        check(CPUS, needs, {}, engines)
    assert "type: transformers" in str(caught.value.fix)
    # one copy is in the stage's own process: it sees the GPUs that the stage asks for
    with pytest.raises(UserError, match=r"takes 1 GPUs, and the stage asks Ray for 0") as caught:
        check(GPUS, {"evaluate": Resources()}, {}, engines)
    assert "--set 'resources.evaluate={gpus: 1}'" in str(caught.value.fix)
    check(GPUS, {"evaluate": Resources(gpus=1)}, {}, engines)
    workers = {"type": "transformers", "workers": 3, "gpus_each": 0.5}
    (one,) = engines_of(nodes[1:2], {"generate": {"backend": workers}}).values()
    assert (one.count, one.gpus, one.count_key) == (3, 0.5, "generate.backend.workers")
    assert not engines_of(nodes, {"generate": {"backend": {"type": "transformers", "workers": 2}}})


def test_teachers_in_actors_need_their_gpus() -> None:
    document = {
        "train": {"own": {"teacher_workers": {"workers": 6, "gpus_each": 2}}, "sft": {}},
        "capture": {"teacher_workers": {"workers": 2}},
    }
    names = ("train@own", "train@sft", "capture@main")
    nodes = [StageNode(name, name.partition("@")[0], (), ()) for name in names]
    engines = engines_of(nodes, document)
    assert [*engines] == ["train@own"]
    with pytest.raises(UserError, match="6 copies of a model with 2 GPUs each") as caught:
        check(GPUS, {"train@own": Resources()}, {}, engines)
    fix = "cohobate run --set train.own.teacher_workers.workers=4, or add nodes"
    assert caught.value.fix == fix


def test_stages_that_start_several_workers() -> None:
    document = {"train": {"kd": {"workers": 4}, "sft": {}}, "filter": {"workers": 1}, "seeds": [1]}
    names = ("train@kd", "train@sft", "filter", "collect")
    nodes = [StageNode(name, name.partition("@")[0], (), ()) for name in names]
    assert workers_of(nodes, document) == {"train@kd": 4}
