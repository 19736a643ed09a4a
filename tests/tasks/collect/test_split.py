from hypothesis import given, settings
from hypothesis import strategies as st

from cohobate.data.contamination import Contamination
from cohobate.data.records import Row, row_id
from tasks.collect.source_records import SourceRecord
from tasks.collect.split import Split, SplitIndex, SplitParts

SIZES = {"labelled": 5, "unlabelled": 50, "dev": 4, "test": 6}


def drawn(source_records, seed=0, **sizes):
    """Draw from (prompt, answer, keys, part) tuples; return the parts as lists of prompts."""
    pool = SplitIndex(Split(seed=seed))
    for number, (prompt, answer, keys, part) in enumerate(source_records, start=1):
        row = Row(id=row_id(prompt), prompt=prompt, answer=answer)
        pool.add(SourceRecord(number, {}, tuple(keys), part=part), row)
    parts = SplitParts()
    Split(seed=seed, **(SIZES | sizes)).draw(pool, lambda row: source_records[row][0], parts)
    named = {name: [source_records[row] for row in getattr(parts, name)] for name in SIZES}
    return named, parts


EXAMPLES = st.lists(
    st.tuples(
        st.text("abcdef ", min_size=1, max_size=12),
        st.sampled_from([None, "x", "y"]),
        st.lists(st.sampled_from("klmnopqrstuvw"), max_size=2, unique=True),
        st.sampled_from(["", "", "", "dev", "test", "train"]),
    ),
    max_size=60,
)


@settings(max_examples=200)
@given(EXAMPLES, st.integers(0, 3))
def test_nothing_leaks_from_one_part_into_another(source_records, seed):
    named, parts = drawn(source_records, seed)
    chosen = [row for name in SIZES for row in getattr(parts, name)]
    refused = [row for row, _ in parts.unusable]
    assert len(chosen) == len(set(chosen)) == len(set(chosen) | set(refused)) - len(refused)
    later = {"test": ["dev", "labelled", "unlabelled"], "dev": ["labelled", "unlabelled"]}
    before: list = []
    for part, others in later.items():
        before += named[part]
        keys = {key for source_record in before for key in source_record[2]}
        index = Contamination(source_record[0] for source_record in before)
        for other in (source_record for name in others for source_record in named[name]):
            assert keys.isdisjoint(other[2])
            if part == "dev" or other in named["dev"]:  # each part is held against all before
                assert index.reason(other[0]) is None
    prompts = [source_record[0] for name in SIZES for source_record in named[name]]
    assert len(prompts) == len(set(prompts))
    for name, size in SIZES.items():
        assert len(named[name]) <= size
        assert name == "unlabelled" or all(source_record[1] for source_record in named[name])
    marks = {part for *_, part in source_records}
    for part in marks & {"dev", "test"}:
        assert all(source_record[3] == part for source_record in named[part])
        assert not any(
            source_record[3] == part for name in later[part] for source_record in named[name]
        )


def many(count):
    return [(f"prompt {n} of {n * 7919 % 1000}", "x", [f"k{n}"], "") for n in range(count)]


def test_parts_have_the_sizes_asked_for_and_do_not_depend_on_the_order_of_the_file():
    forward, parts = drawn(many(100))
    backward, _ = drawn(many(100)[::-1])
    assert {name: len(rows) for name, rows in forward.items()} == SIZES
    assert forward == backward
    assert drawn(many(100), seed=1)[0] != forward
    assert not parts.unusable


def test_more_examples_change_a_split_little():
    before, after = drawn(many(100))[0], drawn(many(105))[0]
    assert sum(source_record in after["test"] for source_record in before["test"]) >= 4


def test_a_group_of_rows_stays_on_one_side():
    grouped = [(f"q{n} {n * n}", "x", [f"document {n % 20}"], "") for n in range(400)]
    named, parts = drawn(grouped, test=40, unlabelled=400)
    sides = [
        {e[2][0] for name in names for e in named[name]}
        for names in (["test"], ["dev"], ["labelled", "unlabelled"])
    ]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert len(sides[0]) <= 3  # whole documents, not one row of each
    assert len(named["unlabelled"]) > 250
    total = sum(map(len, named.values())) + parts.withheld
    assert total == 400


def test_repeated_prompts_are_refused_and_contradictions_altogether():
    source_records = [
        *many(100),
        *many(3),
        (many(5)[4][0], "other", [], ""),
        (many(6)[5][0], None, [], ""),
    ]
    named, parts = drawn(source_records, unlabelled=200)
    assert sorted(parts.unusable) == [
        (4, "duplicate prompt with another answer"),
        (100, "duplicate prompt"),
        (101, "duplicate prompt"),
        (102, "duplicate prompt"),
        (103, "duplicate prompt with another answer"),
        (104, "duplicate prompt"),
    ]
    assert all(source_record[1] for source_record in named["labelled"])


def test_a_test_row_that_is_also_a_training_row_stays_a_test_row():
    marked = [(f"test {n} {n * n}", "x", [], "test") for n in range(3)]
    copies = [(prompt, answer, keys, "train") for prompt, answer, keys, _ in marked]
    named, parts = drawn([*copies, *many(40), *marked])
    assert {e[0] for e in named["test"]} == {e[0] for e in marked}
    assert sorted(row for row, _ in parts.unusable) == [0, 1, 2]


def test_training_rows_close_to_an_evaluation_prompt_are_refused():
    long = "the very long definition of a word that nobody has ever used in earnest before today"
    marked = [(long, "x", [], "test")]
    close = [(f"{long} or now", "x", [], "train"), (long.replace("word", "term"), "x", [], "train")]
    _, parts = drawn([*marked, *close, *many(60)])
    assert {row for row, _ in parts.unusable} == {1, 2}


def test_each_batch_of_unlabelled_rows_comes_after_the_one_before() -> None:
    source_records = [(f"prompt number {n}", "x", (f"k{n}",), "") for n in range(60)]
    batches = [drawn(source_records, unlabelled=10, batch=n)[0] for n in range(5)]
    everything, _ = drawn(source_records, unlabelled=60)
    in_turn = [source_record for named in batches for source_record in named["unlabelled"]]
    assert in_turn == [*everything["unlabelled"][:40], *in_turn[:10]], "then the first again"
    assert len(everything["unlabelled"]) == 45
    for part in ("test", "dev", "labelled"):
        assert all(named[part] == everything[part] for named in batches)
