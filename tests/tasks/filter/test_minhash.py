import random

import pytest

from cohobate.data.contamination import bigrams_of
from tasks.filter.minhash import bands, shared_bands

VOCABULARY = [f"t{n}" for n in range(4000)]


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.95])
@pytest.mark.parametrize("permutations", [32, 128, 500])
def test_bands_find_a_pair_at_the_threshold_and_spare_the_others(similarity, permutations):
    number, width = bands(similarity, permutations)
    assert number * width <= permutations

    def found(s: float) -> float:
        return 1 - (1 - s**width) ** number

    assert found(similarity) >= 0.99
    wider = 1 - (1 - similarity ** (width + 1)) ** (permutations // (width + 1))
    assert wider < 0.99  # no wider band would do


def near(texts, ignored=frozenset()):
    shared, groups = shared_bands(texts, ignored, 0.8, 128)
    assert set().union(*shared.values()) == set(range(groups))
    return shared


def test_similar_pairs_share_a_band_and_strangers_do_not():
    drawn = random.Random(0)
    rows, pairs = [], []
    for number in range(300):
        words = drawn.sample(VOCABULARY, 60)
        twin = [*words[:58], f"a{number}", f"b{number}"]
        pairs.append((len(rows), len(rows) + 1))
        rows += [words, twin]
    some, other = (bigrams_of(words) for words in rows[:2])
    assert 0.8 < len(some & other) / len(some | other) < 0.95
    strangers = [drawn.sample(VOCABULARY, 60) for _ in range(1200)]
    shared = near([*rows, *strangers])
    hits = sum(bool(set(shared.get(a, [])) & set(shared.get(b, []))) for a, b in pairs)
    assert hits >= 297
    assert not [place for place in shared if place >= len(rows)]


def test_a_band_is_shared_as_often_as_the_similarity_says():
    drawn = random.Random(1)
    texts = []
    for _ in range(2000):  # 42 pairs of 60 in common
        words = drawn.sample(VOCABULARY, 50)
        texts += [words, [*words[:42], *drawn.sample(VOCABULARY, 8)]]
    some, other = (bigrams_of(words) for words in texts[:2])
    similarity = len(some & other) / len(some | other)
    assert 0.68 < similarity < 0.74
    number, width = bands(0.8, 128)
    shared = near(texts)
    hits = [len(set(shared.get(n, [])) & set(shared.get(n + 1, []))) for n in range(0, 4000, 2)]
    assert sum(hits) / 2000 / number == pytest.approx(similarity**width, abs=0.02)


def test_bands_do_not_depend_on_the_chunk_of_a_row_or_on_how_often_it_says_a_pair():
    rows = [[f"{n}", f"{n}x", f"{n}y"] for n in range(3000)]
    again = [row * 2 for row in rows]  # one pair more
    shared = near([*rows, *rows, [], []])
    assert all(shared[n] == shared[n + 3000] for n in range(3000))
    assert all(len(shared[n]) == bands(0.8, 128)[0] for n in range(3000))
    assert 6000 not in shared and 6001 not in shared  # nothing said is nothing in common
    assert len(near([*again, *[row * 3 for row in rows]])) == 6000
    assert near([]) == {}


def test_ignored_pairs_count_for_nothing_wherever_they_stand():
    texts = [["a", "native", "of", place, "town"] for place in ("rome", "oslo")]
    inner = {"a native", "native of", " a"}
    assert near(texts, inner) == {}
    everything = set().union(*map(bigrams_of, texts))
    assert near([texts[0], texts[0]], everything) == {}
    assert near([texts[0], texts[0]], everything - {"town "}) != {}
