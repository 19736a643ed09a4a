import pytest
from hypothesis import given
from hypothesis import strategies as st

from cohobate.params import ParamsError, validated
from cohobate.scoring.verifiers import Task, Verifier


def verifier(**spelt):
    return validated(Verifier, spelt, "task.verifier")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        (" animal", "animal", True),
        ("Animal \n", " animal", True),
        ("animal  kingdom", "animal kingdom", True),
        ("animals", "animal", False),
        ("", "", False),
        ("  ", "animal", False),
    ],
)
def test_exact_ignores_white_space_and_case(answer, reference, right):
    assert verifier(type="exact").correct(answer, reference) is right


def test_the_answer_behind_a_mark_is_compared():
    task = Task(verifier={"type": "label", "after": "Answer:"})
    labels = task.labels([" animal", " plant"])
    trace = " Answer: no, wait: it has fur.\nAnswer: animal"
    assert task.verifier.correct(trace, " animal") and task.verifier.admissible(trace, labels)
    assert task.verifier.correct(" Animal", " animal")
    assert not task.verifier.admissible(" It has fur.\nAnswer:", labels)


def test_exact_heeds_case_when_asked():
    assert not verifier(type="exact", casefold=False).correct("Animal", "animal")


def test_a_label_is_admissible_only_if_the_labelled_rows_have_it():
    task = Task(verifier={"type": "label"})
    labels = task.labels([" animal", " Plant", " animal", ""])
    assert labels == {"animal", "plant"}
    assert task.verifier.admissible(" plant", labels)
    assert not task.verifier.admissible(" big cat", labels)
    assert verifier(type="exact").admissible(" big cat", labels)
    assert not verifier(type="exact").admissible(" ", labels)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is $1,234.50.", "1234.5"),
        ("1, 2, 3", "3"),
        ("10-5", "5"),
        ("= -5", "-5"),
        ("−7 degrees", "-7"),
        (".5", "0.5"),
        ("2e3", "2000"),
        ("-0.0", "0"),
        ("007", "7"),
        ("about 12,3456 or so", "3456"),
        ("none", None),
        ("", None),
    ],
)
def test_numeric_reads_the_last_number(text, number):
    assert verifier(type="numeric").canonical(text) == number


def test_numeric_compares_within_a_tolerance():
    assert verifier(type="numeric").correct("x = 0.3333333", "0.33333333")
    assert not verifier(type="numeric", tolerance=0).correct("0.3333333", "0.33333333")
    assert verifier(type="numeric", tolerance=0).correct(
        "12345678901234567890.", "12345678901234567890"
    )
    assert verifier(type="numeric", tolerance=0.01).correct("99.5", "100")
    assert not verifier(type="numeric").correct("four", "four")


@given(st.text(), st.text())
def test_verifiers_take_any_text(answer, reference):
    for kind in ("exact", "label", "numeric"):
        judge = verifier(type=kind)
        right = judge.correct(answer, reference)
        assert right == judge.correct(reference, answer)
        assert judge.correct(answer, answer) == (judge.canonical(answer) is not None)


@given(st.integers(-(10**18), 10**18))
def test_numeric_finds_any_integer(number):
    judge = verifier(type="numeric", tolerance=0)
    assert judge.correct(f"The answer is {number:,}.", str(number))
    assert not judge.correct(f"The answer is {number}", str(number + 1))


def test_an_unknown_verifier_is_refused_by_name():
    with pytest.raises(ParamsError, match="'exat' is none of exact, label, numeric"):
        verifier(type="exat")
