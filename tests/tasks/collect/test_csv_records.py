"""CSV as spreadsheets and data frames write it: read rightly, or refused with the line."""

import io

import pytest

from tasks.collect.csv_records import csv_records
from tasks.collect.source_records import MAX_CHARACTERS, BrokenRecord, UnreadableError

NEVER_CLOSES = "a quote opens here and never closes (a quote within a cell is written twice)"
FEWER = "fewer cells than the header (an empty cell needs its delimiter too)"
MORE = "more cells than the header (a cell that holds the delimiter needs quotes)"


def read(text: str | bytes, **options) -> list:
    data = text if isinstance(text, bytes) else text.encode()
    records = csv_records(io.BytesIO(data), **options)
    return [(n, r.reason if isinstance(r, BrokenRecord) else r) for n, r in records]


def row(question: str, answer: str) -> dict:
    return {"q": question, "a": answer}


def test_rows_span_lines_and_broken_ones_are_named():
    text = b'q,a\n"x\ny",1\n2\n3,4,5\n\xff,6\n\n7,8\n'
    assert read(text) == [
        (2, row("x\ny", "1")),
        (4, FEWER),
        (5, MORE),
        (6, "not UTF-8 (set collect.source.encoding to the encoding of the file)"),
        (8, row("7", "8")),
    ]


@pytest.mark.parametrize(
    "following",
    [
        "x,1\ny,2\n",
        'x,1\n"one, two",2\n',
        'x,1\n"say ""hi""",2\n',
        'x,1\n"two\nlines",2\n',
        f"x,{'1' * 100}\n" * 11_000,
    ],
    ids=["plain", "quoted", "quotes within", "lines within", "beyond the limit"],
)
def test_a_quote_that_never_closes_costs_its_own_row(following):
    whole = read(f"q,a\n{following}")
    records = read(f'q,a\nfirst,0\nthe sign of inches,"\n{following}')
    assert records[:2] == [(2, row("first", "0")), (3, NEVER_CLOSES)]
    assert records[2:] == [(line + 2, record) for line, record in whole]


@pytest.mark.parametrize(
    ("header", "lone", "plain"),
    [
        ("q,a", 'inch,"', "x,1"),
        ("q,sign,a", 'inch,",short', "x,y,1"),
        ("q,a", '",inch', "x,1"),
    ],
)
def test_two_quotes_that_never_close_do_not_swallow_the_rows_between(header, lone, plain):
    names = header.split(",")
    good = dict(zip(names, plain.split(","), strict=True))
    assert read(f"{header}\n{lone}\n{plain}\n{plain}\n{lone}\n{plain}\n") == [
        (2, NEVER_CLOSES),
        (3, good),
        (4, good),
        (5, NEVER_CLOSES),
        (6, good),
    ]


@pytest.mark.parametrize(
    "cell",
    ["\n", "a\nb", "a, b\nc, d\n", "\nlist:\n- a, b\n", 'say "hi"\nor ""\n', "x,1\ny,2"],
)
def test_a_cell_of_several_lines_stays_one_cell(cell):
    quoted = cell.replace('"', '""')
    assert read(f'q,a\nx,"{quoted}"\ny,2\n') == [
        (2, row("x", cell)),
        (3 + cell.count("\n"), row("y", "2")),
    ]


def test_text_behind_a_closing_quote_is_set_aside():
    behind = "text after a closing quote (a quote within a cell is written twice)"
    assert read('q,a\n"5" wide",1\ny,2\n') == [(2, behind), (3, row("y", "2"))]
    assert read('q,a\n5" wide,1\n') == [(2, row('5" wide', "1"))]


@pytest.mark.parametrize(
    ("header", "named"), [("q,a,a", "a"), ("q, a ,a", "a"), ("q,a,q,a", "q, a")]
)
def test_a_column_named_twice_is_refused(header, named):
    with pytest.raises(UnreadableError, match=f"line 1, names a column twice: {named}") as refused:
        read(f"{header}\n1,2,3,4\n")
    assert "rename" in refused.value.fix


def test_columns_that_differ_by_case_are_two():
    assert read("q,A,a\n1,2,3\n") == [(2, {"q": "1", "A": "2", "a": "3"})]


@pytest.mark.parametrize("header", ['"q,a', "q,a\xff", "x" * (MAX_CHARACTERS + 9)])
def test_a_header_that_cannot_be_read_is_no_row(header):
    with pytest.raises(UnreadableError, match="the header, line 1"):
        read(header.encode("latin-1") + b"\nx,1\ny,2\n")


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("q;a\nx, y;1,5\nz;2\n", 2),
        ("q\ta\nx, y\t1,5\nz\t2\n", 2),
        ("q|a\nx, y|1,5\nz|2\n", 2),
        ("sep=;\nq;a\nx, y;1,5\nz;2\n", 3),
        ('"sep=;"\r\nq;a\r\nx, y;1,5\r\nz;2\r\n', 3),
        ('q,a\n"x, y","1,5"\nz,2\n', 2),
        ('\n\nq,a\n"x, y","1,5"\nz,2\n', 4),
        ('q,a\r\n"x, y","1,5"\r\nz,2\r\n', 2),
        ('q,a\r"x, y","1,5"\rz,2\r', 2),
        ('q,a,\n"x, y","1,5",\nz,2,\n', 2),
        ('q,a\n"x, y","1,5",,\nz,2,\n', 2),
        (',q,a\n0,"x, y","1,5"\n1,z,2\n', 2),
        ('q , a\n"x, y","1,5"\nz,2', 2),
        ('q, a\n"x, y", "1,5"\nz, 2\n', 2),
    ],
    ids=repr,
)
def test_delimiters_line_ends_and_encodings_are_told(text, first):
    expected = [(first, row("x, y", "1,5")), (first + 1, row("z", "2"))]
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert read(text.encode(encoding)) == expected, encoding


def test_a_semicolon_in_one_column_of_text_is_no_delimiter():
    assert read("text\none; two\nthree\n") == [(2, {"text": "one; two"}), (3, {"text": "three"})]
    assert read("Q;A, short\na;b\nc;d, e\n")[1] == (3, {"Q": "c", "A, short": "d, e"})


def test_blanks_before_a_cell_belong_to_it_unless_quotes_come_behind_them():
    assert read("q,a\nx, 1\n") == [(2, row("x", " 1"))]
    assert read('q;a\n"I said, ";1\nx; 2\n') == [(2, row("I said, ", "1")), (3, row("x", " 2"))]


def test_empty_cells_and_na_stay_what_they_are():
    assert read("q,a\nx,NA\ny,\n,\n") == [
        (2, row("x", "NA")),
        (3, row("y", "")),
        (4, row("", "")),
    ]


def test_bytes_of_another_encoding_cost_their_row_until_it_is_named():
    data = "q,a\ncafé,1\nx,2\n".encode("cp1252")
    (first, reason), second = read(data)
    assert first == 2 and reason.startswith("not UTF-8") and second == (3, row("x", "2"))
    assert read(data, encoding="cp1252")[0] == (2, row("café", "1"))
    damaged = "q,a\nx,1\ny,2\n".encode("utf-16").replace(b"y", b"\x00\xdc\x79")
    assert read(damaged)[0] == (2, row("x", "1"))


def test_a_header_that_comes_again_is_no_row():
    joined = b"\xef\xbb\xbfq,a\nx,1\n\xef\xbb\xbfq,a\ny,2\n"
    assert read(joined) == [(2, row("x", "1")), (3, "repeated header"), (4, row("y", "2"))]


def test_odd_cells_are_named():
    assert read("q,a\nx\0,1\ny,2\n") == [(2, "a cell holds a zero byte"), (3, row("y", "2"))]
    long = f"a line of more than {MAX_CHARACTERS} characters"
    assert read("q,a\n" + "x" * 10_000_000 + ",1\ny,2\n") == [(2, long), (3, row("y", "2"))]
    mixed = "a carriage return within a cell that is not quoted"
    assert read("q,a\nx\rz,1\ny,2\n") == [(2, mixed), (3, row("y", "2"))]


def test_thousands_of_columns_are_read():
    names = [f"c{n}" for n in range(5000)]
    ((_, record),) = read(",".join(names) + "\n" + ",".join(map(str, range(5000))) + "\n")
    assert record["c4999"] == "4999" and len(record) == 5000
