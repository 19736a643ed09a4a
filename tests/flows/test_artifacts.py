"""What the Prefect UI is given of a round."""

import csv
from base64 import b64decode
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cohobate.data.records import write_json
from flows import artifacts
from tasks.evaluate.tables import LOSSES, SAMPLES
from tests.flows.test_round_history import record


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was published, by key."""
    contents: dict[str, Any] = {}
    for kind in ("image", "markdown", "table"):
        monkeypatch.setattr(
            artifacts,
            f"create_{kind}_artifact",
            lambda content, key, description: contents.update({key: content}),
        )
    return contents


def drawn(picture: str) -> ElementTree.Element:
    kind, _, content = picture.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return ElementTree.fromstring(b64decode(content))


def shapes(picture: str, name: str) -> list[ElementTree.Element]:
    return [shape for shape in drawn(picture).iter() if shape.tag.endswith(f"}}{name}")]


def test_champion_and_challenger_are_compared_with_their_intervals(
    published: dict[str, Any],
) -> None:
    verdict = {
        "intervals": {
            "champion": {"low": 0.6, "mean": 0.641, "high": 0.68},
            "challenger": {"low": 0.7, "mean": 0.733, "high": 0.775},
        }
    }
    artifacts.show_promotion(verdict, record(2), record(1))
    assert (
        "| champion | `models/champion/round-0001` | 0.641 | [0.600, 0.680] |"
        in published["champion"]
    )
    assert "| challenger | `round-0002` | 0.733 | [0.700, 0.775] |" in published["champion"]
    texts = [text.text for text in shapes(published["champion-picture"], "text")]
    assert len(shapes(published["champion-picture"], "circle")) == 2
    assert {"0.641", "0.733", "champion", "round-0002"} <= set(texts)


def test_loss_curves_and_sample_rows_are_there_once_they_are(
    project: Path, published: dict[str, Any]
) -> None:
    artifacts.show_losses(project)
    artifacts.show_samples(project)
    assert published == {}
    LOSSES.mkdir(parents=True)
    with (LOSSES / "kd-seed-1.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "stage"), (1, 2.5, 0), (2, 1.5, 0)])
    answers = {"kd": {"answer": " plant", "score": 1.0, "confidence": 0.9}}
    row = {"kind": "won", "prompt": "an oak", "reference": " plant", "answers": answers}
    write_json(SAMPLES, [row])
    artifacts.show_losses(project)
    artifacts.show_samples(project)
    (line,) = shapes(published["losses"], "polyline")
    assert len(line.attrib["points"].split()) == 2
    assert "kd" in [text.text for text in shapes(published["losses"], "text")]
    assert published["samples"] == [
        {"kind": "won", "prompt": "an oak", "reference": " plant", "kd": " plant"}
    ]


def test_a_round_links_its_tag_its_commits_and_every_hash(published: dict[str, Any]) -> None:
    artifacts.show_lineage(
        record(3, base="b" * 40), "round-0003", "c" * 40, {"train@kd models/kd": "a" * 32}
    )
    for part in ("round-0003", "b" * 40, "c" * 40, f"| train@kd models/kd | `{'a' * 32}` |"):
        assert part in published["lineage"]
