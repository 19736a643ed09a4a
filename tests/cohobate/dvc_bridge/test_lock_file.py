"""The order of dvc.lock's entries is that of the graph, whoever was done first."""

import io
from itertools import permutations

import pytest
from ruamel.yaml import YAML

from cohobate.dvc_bridge.lock_file import in_order

CURRICULUM = ["collect", "filter", "train@kd", "train@0.5"]


def lock(names: list[str], more: str = "") -> str:
    """What DVC writes: commands of several lines, lists of files, and whatever else there is."""
    yaml = YAML()
    yaml.default_flow_style = False
    stages = {
        name: {"cmd": f"python -m tasks {name}\necho done\n", "deps": [{"path": "a  b"}]}
        for name in names
    }
    written = io.StringIO()
    yaml.dump({"schema": "2.0", "stages": stages}, written)
    return written.getvalue() + more


def later_than(name: str) -> set[str]:
    return {*CURRICULUM[CURRICULUM.index(name) + 1 :]}


@pytest.mark.parametrize("ended", [*permutations(CURRICULUM)])
def test_whatever_order_stages_end_in_the_file_is_the_same(ended: tuple[str, ...]) -> None:
    found = lock([])
    for count, name in enumerate(ended):
        there = list(YAML(typ="safe").load(found)["stages"] or {})
        assert there == [n for n in CURRICULUM if n in ended[:count]]
        found = in_order(lock([*there, name]), name, later_than(name))
    assert found == lock(CURRICULUM)


def test_two_that_were_appended_before_either_was_placed() -> None:
    found = lock(["train@kd", "train@0.5", "collect", "filter"])
    for name in ("filter", "train@kd", "train@0.5", "collect"):
        found = in_order(found, name, later_than(name))
    assert found == lock(CURRICULUM)


def test_what_stands_beside_the_stages_stays_where_it_is() -> None:
    beside = "datasets:\n- name: d\n  type: dvc\n"
    found = in_order(lock(["filter", "collect"], beside), "collect", later_than("collect"))
    assert found == lock(["collect", "filter"], beside)


@pytest.mark.parametrize("text", ["", "schema: '2.0'\n", lock([]), lock(CURRICULUM)])
def test_a_file_without_anything_to_move_is_left_as_it_is(text: str) -> None:
    assert in_order(text, "collect", later_than("collect")) == text
    assert in_order(text, "not there", {*CURRICULUM}) == text
