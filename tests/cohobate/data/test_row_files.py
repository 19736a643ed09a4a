import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cohobate.data.records import Row, write_rows
from cohobate.data.row_files import RowView


def rows(count: int, start: int = 0) -> list[Row]:
    return [Row(id=f"{n:016x}", prompt=f"prompt é {n}\n") for n in range(start, start + count)]


@pytest.fixture
def view(tmp_path) -> RowView[Row]:
    for name, count, start in (("a", 3, 0), ("b", 0, 0), ("c", 4, 3)):
        write_rows(tmp_path / f"{name}.jsonl", rows(count, start))
    return RowView.of([tmp_path / f"{name}.jsonl" for name in "abc"], Row)


def test_a_view_walks_its_files_as_often_as_asked(view):
    assert list(view) == rows(7) == list(view)
    assert len(view) == 7
    assert [view[n] for n in (6, 0, 3)] == [rows(7)[n] for n in (6, 0, 3)]


@settings(max_examples=30)
@given(st.data())
def test_a_narrowed_view_keeps_order_and_repetition(data):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / "a.jsonl", Path(place) / "b.jsonl"]
        for number, path in enumerate(paths):
            write_rows(path, rows(4, 4 * number))
        whole = RowView.of(paths, Row)
        first = data.draw(st.lists(st.integers(0, 7)))
        chosen = whole.only(first)
        assert list(chosen) == [rows(8)[n] for n in first]
        if first:
            second = data.draw(st.lists(st.integers(0, len(first) - 1)))
            assert list(chosen.only(second)) == [rows(8)[first[n]] for n in second]
