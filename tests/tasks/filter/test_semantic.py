"""What says the same in other words, on embeddings made by hand; the encoder itself is slow."""

import numpy as np
import pytest

from cohobate.models import sentence_embeddings
from tasks.filter import semantic
from tests.tasks.filter.test_filters import judged, response

DIRECTIONS = {"east": 0, "nearly east": 12, "north": 90, "nearly north": 101, "west": 180}


@pytest.fixture(autouse=True)
def by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embed each prompt as the direction that it names."""

    def embedded(rows, of, threads):
        angles = np.radians([DIRECTIONS[row.prompt] for row in rows])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)

    monkeypatch.setattr(semantic, "_embedded", embedded)


def rows(*names: str):
    return [response(prompt=name, sample=n) for n, name in enumerate(names)]


def test_raw_text_is_embedded_itself(by_hand, monkeypatch):
    monkeypatch.undo()
    embedded: list[str] = []
    monkeypatch.setattr(sentence_embeddings, "encoder", lambda *_: None)
    monkeypatch.setattr(
        sentence_embeddings,
        "embeddings",
        lambda texts, *_: embedded.extend(texts) or iter(np.zeros((2, 1, 8))),
    )
    semantic._embedded([response(prompt="", answer="A text."), *rows("east")], "prompt", 1)
    assert embedded == ["A text.", "east"]


def test_semantic_duplicates_are_those_of_a_row_that_was_kept(monkeypatch):
    responses = rows("east", "north", "nearly east", "nearly north", "west", "east")
    again = "semantic duplicate of an earlier row"
    expected = ["kept", "kept", again, again, "kept", again]
    spelt = {"type": "semantic_duplicates", "similarity": 0.95}
    assert judged(spelt, responses) == expected
    for block in (1, 2, 4):  # however the rows are cut
        monkeypatch.setattr(semantic, "_BLOCK", block)
        assert judged(spelt, responses) == expected
    strict = {"type": "semantic_duplicates", "similarity": 0.999}
    assert set(judged(strict, responses[:5])) == {"kept"}


def test_what_is_like_a_dropped_row_alone_stays(monkeypatch):
    steps = {f"step {n}": 15 * n for n in range(4)}  # each like its neighbours, no further
    monkeypatch.setattr(semantic, "_BLOCK", 2)
    monkeypatch.setitem(globals(), "DIRECTIONS", DIRECTIONS | steps)
    verdicts = judged({"type": "semantic_duplicates", "similarity": 0.95}, rows(*steps))
    assert [verdict == "kept" for verdict in verdicts] == [True, False, True, False]


@pytest.mark.parametrize("by", ["facility_location", "k_centre"])
def test_the_diverse_part_has_one_row_of_each_cluster(by):
    responses = rows("east", "nearly east", "north", "nearly north", "east", "north", "west")
    verdicts = judged({"type": "diversity", "by": by, "keep_rows": 3}, responses)
    pairs = zip(responses, verdicts, strict=True)
    kept = [row.prompt for row, verdict in pairs if verdict == "kept"]
    assert len({name.removeprefix("nearly ") for name in kept}) == 3 == len(kept)
    assert set(verdicts) == {"kept", "not selected (diversity)"}
    assert judged({"type": "diversity", "by": by, "keep_share": 0.9}, responses[:1]) == ["kept"]


def test_facility_location_comes_near_the_optimum():
    drawn = np.random.default_rng(0).normal(size=(60, 8))
    all_ND = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)

    def covered(chosen) -> float:
        return float((all_ND.astype(float) @ all_ND[chosen].astype(float).T).max(1).sum())

    chosen = semantic._facility_location(all_ND, 6, seed=0)
    greedy: list[int] = []
    for _ in range(6):
        greedy.append(max(set(range(60)) - set(greedy), key=lambda n: covered([*greedy, n])))
    chance = [covered(np.random.default_rng(n).choice(60, 6, False)) for n in range(20)]
    assert covered(chosen) >= 0.9 * covered(greedy)
    assert covered(chosen) > max(chance)
