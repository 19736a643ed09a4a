import random

import pytest

from tasks.filter.near_duplicates import bands, shared_bands

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


def test_similar_pairs_share_a_band_and_strangers_do_not():
    drawn = random.Random(0)
    rows, pairs = [], []
    for number in range(300):
        tokens = drawn.sample(VOCABULARY, 40)
        twin = [*tokens[:38], f"a{number}", f"b{number}"]  # Jaccard similarity 38 / 42
        pairs.append((len(rows), len(rows) + 1))
        rows += [tokens, twin]
    strangers = [drawn.sample(VOCABULARY, 40) for _ in range(1200)]
    shared = shared_bands([*rows, *strangers], 0.8, 128)
    hits = sum(bool(set(shared.get(a, [])) & set(shared.get(b, []))) for a, b in pairs)
    assert hits >= 297
    assert not [place for place in shared if place >= len(rows)]


def test_bands_do_not_depend_on_the_order_of_tokens_or_the_chunk_of_a_row():
    rows = [[f"{n}", f"{n}x", f"{n}y"] for n in range(1500)]
    again = [row[::-1] for row in rows]
    shared = shared_bands([*rows, *again], 0.8, 128)
    assert all(
        shared[n] == shared[n + 1500] and len(shared[n]) == bands(0.8, 128)[0] for n in range(1500)
    )
    assert shared_bands([], 0.8, 128) == {}
