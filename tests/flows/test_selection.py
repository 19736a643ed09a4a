"""Which stages a round takes."""

import pytest

from cohobate.dvc_bridge.versioning import StageNode
from cohobate.errors import UserError
from flows.selection import nearest_upstream, resources_for, select_stages


def node(address: str, *upstream: str) -> StageNode:
    return StageNode(address, "", upstream, ())


GRAPH = [
    node("collect"),
    node("init_student"),
    node("train@sft", "collect", "init_student"),
    node("train@kd", "train@sft"),
    node("evaluate", "train@sft", "train@kd"),
]


@pytest.mark.parametrize(
    ("only", "taken"),
    [
        (None, ["collect", "init_student", "train@sft", "train@kd", "evaluate"]),
        ("collect", ["collect"]),
        ("train@sft", ["collect", "init_student", "train@sft"]),
        ("train", ["collect", "init_student", "train@sft", "train@kd"]),
    ],
)
def test_a_stage_is_taken_with_all_it_waits_for(only: str | None, taken: list[str]) -> None:
    assert [n.address for n in select_stages(GRAPH, only)] == taken


def test_a_stage_waits_for_the_nearest_alone() -> None:
    code = node("code")
    graph = [code, *(node(n.address, "code", *n.upstream) for n in GRAPH)]
    assert nearest_upstream(graph) == {
        "code": [],
        "collect": ["code"],
        "init_student": ["code"],
        "train@sft": ["collect", "init_student"],
        "train@kd": ["train@sft"],
        "evaluate": ["train@kd"],
    }
    assert nearest_upstream(GRAPH[2:])["train@sft"] == [], "stages that were not selected"


def test_an_unknown_stage_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'train@kd'"):
        select_stages(GRAPH, "trian@kd")


def test_an_items_resources_go_before_its_stages() -> None:
    document = {"resources": {"train": {"cpus": 2}, "train@kd": {"cpus": 1, "gpus": 1}}}
    resources = resources_for(GRAPH, document)
    assert (resources["train@sft"].cpus, resources["train@kd"].gpus) == (2, 1)
    assert resources["collect"].cpus == 1
