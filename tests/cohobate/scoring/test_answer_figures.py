"""Metrics of longer answers, of a form, and figures of all answers together."""

import pytest

from cohobate import params
from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.scoring.answer_figures import AnswerLength, DistinctN, MacroF1
from cohobate.scoring.metrics import AnswerMetric, Format, Rouge
from cohobate.scoring.verifiers import Label, Task

LABEL = Label(type="label")
TASK = Task(verifier=LABEL)


def rows(*answers: str) -> list[Row]:
    return [Row(id=str(n), prompt="p", answer=answer) for n, answer in enumerate(answers)]


def test_rouge_counts_words_pairs_and_the_longest_subsequence() -> None:
    scores = {
        kind: Rouge(type=kind).score("the cat ran home", "the cat sat home", LABEL)
        for kind in ("rouge_1", "rouge_2", "rouge_l")
    }
    # three of four words, one of three pairs, "the cat home"
    assert scores == pytest.approx({"rouge_1": 0.75, "rouge_2": 1 / 3, "rouge_l": 0.75})


def test_a_form_is_a_pattern_or_a_schema() -> None:
    digits = Format(type="format", regex=r"\d+")
    assert [digits.score(text, "", LABEL) for text in (" 12 ", "12a", "")] == [1, 0, 0]
    schema = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer"}}}
    form = Format(type="format", json_schema=schema)
    texts = ('{"name": "a"}', '{"name": "a", "age": 1.5}', "[]", "no JSON", "[" * 100_000)
    assert [form.score(text, "", LABEL) for text in texts] == [1, 0, 0, 0, 0]
    assert Format(type="format", json_schema={}).score("3", "", LABEL) == 1
    for settings, message in (
        ({}, "either regex or json_schema"),
        ({"regex": "("}, "not a regular expression"),
        ({"json_schema": {"type": "objekt"}}, "is not valid"),
    ):
        with pytest.raises(UserError, match=message):
            params.validated(AnswerMetric, {"type": "format", **settings}, "evaluate.metrics.0")


def test_macro_f1_weighs_labels_alike() -> None:
    from sklearn.metrics import f1_score

    expected = ["a", "a", "a", "a", "b", "c"]
    given = ["a", "a", "b", "a", "b", "no label"]
    figure = MacroF1(type="macro_f1").measure(rows(*expected), given, TASK)
    labels = ["a", "b", "c"]
    assert figure == pytest.approx(f1_score(expected, given, labels=labels, average="macro"))
    assert MacroF1(type="macro_f1").measure([], [], TASK) is None


def test_distinct_n_and_length() -> None:
    texts = ["a b c", "a b d", "x"]
    given = rows("", "", "")
    pairs = DistinctN(type="distinct_n")
    assert (pairs.name, pairs.measure(given, texts, TASK)) == ("distinct_2", 3 / 4)
    assert DistinctN(type="distinct_n", n=4).measure(given, texts, TASK) is None
    words, letters = AnswerLength(type="length"), AnswerLength(type="length", unit="characters")
    assert words.measure(given, texts, TASK) == pytest.approx(7 / 3)
    assert letters.measure(given, texts, TASK) == pytest.approx(11 / 3)
    of_task = AnswerLength(type="length", tasks=("other",))
    assert of_task.measure(given, texts, TASK) is None
