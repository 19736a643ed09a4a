"""Rows that are too long: dropped or cut, with their spans, and counted."""

import pytest

from cohobate.data.examples import examples_of
from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit
from cohobate.data.tokenized import Encoded
from cohobate.errors import UserError

LONG = Encoded(list(range(10)), ((2, 4), (7, 10)))


def cut(size, side, *rows):
    limit = LengthLimit(size, side)
    return list(limit.apply(iter(rows or (LONG,)))), limit


@pytest.mark.parametrize(
    "size, side, ids, spans",
    [
        (10, "drop", range(10), ((2, 4), (7, 10))),
        (9, "drop", (), ()),
        (8, "truncate_right", range(8), ((2, 4), (7, 8))),
        (7, "truncate_right", range(7), ((2, 4),)),
        (2, "truncate_right", (), ()),  # nothing that is learnt would be left
        (7, "truncate_left", range(3, 10), ((4, 7),)),  # 3 has no id before it
        (8, "truncate_left", range(2, 10), ((1, 2), (5, 8))),
        (3, "truncate_left", range(7, 10), ((1, 3),)),
    ],
)
def test_spans_are_cut_with_the_ids(size, side, ids, spans):
    (kept,), limit = cut(size, side)
    assert (kept.ids, kept.spans) == (list(ids), spans)
    assert (limit.longer, limit.dropped) == (int(size < 10), int(not spans))
    assert limit.longest == 10


def test_what_was_cut_is_said_with_the_longest_and_the_share(capsys):
    rows = [Encoded([1, 2], ((1, 2),)), Encoded([1, 2], ()), LONG, LONG]
    kept, limit = cut(5, "truncate_right", *rows)
    assert [len(one.ids) for one in kept] == [2, 2, 5, 5]
    limit.report("train kd")
    log = capsys.readouterr().err
    assert "1 of 4 rows left out: they have no answer" in log
    assert "2 of 4 rows (50.0%) have more than 5 tokens, the longest 10: 2 cut to their" in log


def test_rows_that_are_all_too_long_are_their_own_error():
    kept, limit = cut(4, "drop", LONG, LONG)
    rows = [Row(id="0", prompt="a", answer="b")] * 2
    assert not examples_of(rows, kept)
    with pytest.raises(UserError, match=r"all 2 rows have more than 4 tokens \(the longest 10\)"):
        limit.refuse_none(0, "here")
    LengthLimit(4).refuse_none(0, "no row at all is another error")
