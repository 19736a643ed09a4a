"""Packing: what is packed is what is unpacked, in the bytes that were promised."""

import numpy as np
import pytest

from cohobate.teachers.signal_store.packing import Draws, IdSets, pack_gaps, unpack_gaps

SIZES = [(49152, 128), (49152, 32), (151936, 128), (300, 300), (40, 3), (1 << 18, 1), (257, 64)]


def id_sets(vocabulary: int, k: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.sort(np.stack([rng.choice(vocabulary, k, replace=False) for _ in range(20)]), 1)


@pytest.mark.parametrize(("vocabulary", "k"), SIZES)
def test_sets_of_ids_come_back(vocabulary, k) -> None:
    sets, ids = IdSets.of(vocabulary, k), id_sets(vocabulary, k)
    packed = sets.pack(ids)
    assert packed.shape == (20, sets.size)
    assert np.array_equal(sets.unpack(packed), ids)


def test_the_first_and_the_last_ids_come_back() -> None:
    sets = IdSets.of(49152, 4)
    ids = np.array([[0, 1, 2, 3], [49148, 49149, 49150, 49151], [0, 255, 256, 49151]])
    assert np.array_equal(sets.unpack(sets.pack(ids)), ids)


def test_a_set_takes_little_more_than_its_information() -> None:
    from math import comb, log2

    bits = 8 * IdSets.of(49152, 128).size / 128
    assert bits <= 10.5 and bits - log2(comb(49152, 128)) / 128 < 0.6


def test_gaps_lose_next_to_nothing() -> None:
    logits = 4 * np.random.default_rng(1).standard_normal((200, 5000)).astype(np.float32)
    logp = np.sort(logits - np.log(np.exp(logits).sum(1, keepdims=True)), 1)[:, ::-1][:, :128]
    read = unpack_gaps(*pack_gaps(logp))
    assert np.array_equal(read.argmax(1), logp.argmax(1))
    p = np.exp(logp.astype(np.float64))
    p, q = (x / x.sum(1, keepdims=True) for x in (p, np.exp(read.astype(np.float64))))
    assert (p * np.log(p / q)).sum(1).max() < 1e-4


def test_one_id_and_equal_ids_have_no_gap() -> None:
    logp = np.log(np.full((2, 4), 0.25, dtype=np.float32))
    np.testing.assert_allclose(unpack_gaps(*pack_gaps(logp)), logp, rtol=1e-3)
    np.testing.assert_allclose(unpack_gaps(*pack_gaps(logp[:, :1])), logp[:, :1], rtol=1e-3)


@pytest.mark.parametrize("vocabulary", [20, 49152, 151936, 1 << 20])
def test_draws_come_back_with_their_counts(vocabulary) -> None:
    ids = np.sort(np.random.default_rng(2).integers(0, 20, (30, 40)), 1)
    ids[0], ids[1, 1:], ids[2] = 7, 19, range(40) if vocabulary > 40 else 3
    draws = Draws(vocabulary, 40)
    distinct, packed = draws.pack(ids)
    assert packed.shape == (draws.sizes(distinct).sum(),)
    actual, counts = draws.unpack(distinct, packed)
    for row, its_ids, its_counts in zip(ids, actual, counts, strict=True):
        expected = np.bincount(row, minlength=40)
        assert np.array_equal(np.bincount(its_ids, its_counts, 40), expected)


def test_draws_take_what_was_promised() -> None:
    sizes = Draws(49152, 64).sizes(np.array([1, 28, 64]))
    assert sizes[0] == 3 and sizes[1] <= 54 and sizes[2] <= 100
