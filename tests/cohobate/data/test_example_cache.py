"""Token ids are computed once for the same rows, tokenizer and limit."""

from cohobate.data import example_cache
from cohobate.data.records import Row
from cohobate.data.row_length import LengthLimit


def test_the_same_rows_are_encoded_once(tokenizer, make_tokenizer, monkeypatch):
    calls = []
    encode_all = example_cache.encode_all

    def counted(*arguments):
        calls.append(arguments)
        return encode_all(*arguments)

    monkeypatch.setattr(example_cache, "encode_all", counted)
    example_cache._examples.clear()

    def encoded(its, answer=" b", size=None):
        rows = [Row(id=str(n), prompt=f"a {n}", answer=answer) for n in range(3)]
        return example_cache.encoded_examples(its, rows, LengthLimit(size))

    first = encoded(tokenizer)
    again = encoded(make_tokenizer())  # as the next seed loads it
    assert len(calls) == 1 and first is not again
    assert [one.ids.tolist() for one in first] == [one.ids.tolist() for one in again]
    other = make_tokenizer()
    other.chat_template = "another"
    encoded(tokenizer, " c")
    encoded(tokenizer, size=4)
    encoded(other)
    assert len(calls) == 4
    encoded(tokenizer)  # two are kept
    assert len(calls) == 5
