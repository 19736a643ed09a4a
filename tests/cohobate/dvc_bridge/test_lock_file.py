"""The entries of dvc.lock are in the order of the graph, whichever stage ended first."""

import io
from itertools import permutations

import pytest
from ruamel.yaml import YAML

from cohobate.dvc_bridge.lock_file import in_order

ORDER = ["collect", "filter", "train@kd", "train@0.5"]


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


@pytest.mark.parametrize("ended", [*permutations(ORDER)])
def test_the_file_is_the_same_in_whatever_order_stages_end(ended: tuple[str, ...]) -> None:
    for count in range(1, len(ended) + 1):
        expected = [name for name in ORDER if name in ended[:count]]
        assert in_order(lock([*ended[:count]]), ORDER) == lock(expected)


def test_an_entry_of_a_stage_that_no_longer_exists_keeps_its_position() -> None:
    assert in_order(lock(["filter", "old", "collect"]), ORDER) == lock(["collect", "old", "filter"])
    assert in_order(lock(["old", "filter", "collect"]), ORDER) == lock(["old", "collect", "filter"])


def test_what_stands_beside_the_stages_stays_where_it_is() -> None:
    beside = "datasets:\n- name: d\n  type: dvc\n"
    assert in_order(lock(["filter", "collect"], beside), ORDER) == lock(
        ["collect", "filter"], beside
    )


def test_comments_move_with_their_entry() -> None:
    text = lock(["filter", "collect"]).replace("  collect:\n", "  collect:\n    # mine\n")
    expected = lock(["collect", "filter"]).replace("  collect:\n", "  collect:\n    # mine\n")
    assert in_order(text, ORDER) == expected


@pytest.mark.parametrize("text", ["", "schema: '2.0'\n", lock([]), lock(ORDER)])
def test_a_file_without_anything_to_move_is_left_as_it_is(text: str) -> None:
    assert in_order(text, ORDER) == text
    assert in_order(text, []) == text
