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


def test_the_mark_is_a_pattern_and_its_last_match_counts():
    trace = "Answer: 3? No.\nThe ANSWER is 4, not 5"
    assert verifier(type="numeric", after=r"(?i)answer( is|:)").canonical(trace) == "5"
    assert verifier(type="numeric", after="####").correct("7 + 1\n#### 8\n", "8")
    assert verifier(type="math", after="Answer:").correct(r"so 9. Answer: \frac{1}{2}", "0.5")
    with pytest.raises(ParamsError, match="not a regular expression"):
        verifier(type="exact", after="**Answer")
    with pytest.raises(ParamsError, match="where nothing stands"):
        verifier(type="exact", after="x*")


@pytest.mark.parametrize("kind", ["exact", "label", "numeric", "math"])
def test_the_answer_behind_the_reasoning_is_compared(kind):
    assert verifier(type=kind).correct("<think>\n5, or 6\n</think>\n\n4", "4")
    assert not verifier(type=kind).correct("<think>\nit must be 4", "4")


CALL = '<tool_call>{"name": "f", "arguments": {"x": 1, "y": "b"}}</tool_call>'
OTHER = '<tool_call>{"name": "g", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ('{"name": "f", "parameters": {"y": "b", "x": 1.0}}', CALL, True),
        (f"Let me see.\n{CALL}", CALL, True),
        (f"<think>f, or {OTHER}</think>{CALL}", CALL, True),
        ('[TOOL_CALLS]f[ARGS]{"x": 1, "y": "c"}', CALL, False),
        ('[TOOL_CALLS]f[ARGS]{"x": "1", "y": "b"}', CALL, False),
        (CALL + OTHER, CALL, False),
        (CALL + OTHER, OTHER + CALL, False),
        ("It rains.", CALL, False),
        ("It rains.", "There is rain.", True),
        (CALL, "It rains.", False),
        ('<tool_call>{"name": "f", </tool_call>', "It rains.", False),
    ],
)
def test_calls_are_compared_as_json(answer, reference, right):
    assert verifier(type="tool_calls").correct(answer, reference) is right


def test_the_order_of_calls_may_not_matter():
    either = verifier(type="tool_calls", in_order=False)
    assert either.correct(CALL + OTHER, OTHER + CALL)
    assert not either.correct(CALL + CALL, CALL)
    assert not either.admissible("[TOOL_CALLS] f", ()) and either.admissible("Hello", ())


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
    with pytest.raises(ParamsError, match="'exat' is none of exact, label, ranking"):
        verifier(type="exat")
