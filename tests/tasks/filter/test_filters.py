"""Hand-written rows for each filter, with the reason it gives."""

import pytest
from pydantic import TypeAdapter, ValidationError

from cohobate.data.contamination import Contamination
from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import Response, row_id
from cohobate.errors import UserError
from cohobate.scoring.verifiers import Task
from tasks.filter.base_filter import KEEP, Context, Drop, Filter
from tasks.filter.filters import AnyFilter, ContaminationFilter

EVALUATION = ["a small furry animal that lives under the ground in the gardens of Europe"]


def response(answer: str = " animal", prompt="a prompt", **more) -> Response:
    options = {"id": row_id(prompt), "origin": "teacher", "teacher": "main", "finish": "stop"}
    return Response(prompt=prompt, answer=answer, **(options | more))


def context(verifier: str = "label", labels=("animal", "plant"), evaluation=EVALUATION) -> Context:
    task = Task(verifier={"type": verifier})
    return Context(task, {None: task.labels(labels)}, Contamination(evaluation))


def judged(spelt: dict, rows: list[Response], known: Context | None = None) -> list[str]:
    """What the filter says of each row: its reason, or `kept`."""
    filter: Filter = TypeAdapter(AnyFilter).validate_python(spelt)
    verdicts = list(filter.verdicts(rows, known or context()))
    assert len(verdicts) == len(rows)
    return [v.reason if isinstance(v, Drop) else "kept" for v in verdicts]


def test_unfinished():
    rows = [response(finish="stop"), response(finish="length")]
    assert judged({"type": "unfinished"}, rows) == ["kept", "cut off at the length limit"]


def test_length():
    rows = [response("  "), response("abc"), response(" abcd "), response("a" * 11)]
    assert judged({"type": "length", "min_characters": 4, "max_characters": 10}, rows) == [
        "shorter than 4 characters",
        "shorter than 4 characters",
        "kept",
        "longer than 10 characters",
    ]


def test_reasoning_has_limits_of_its_own():
    rows = [response(" four"), response(" four", reasoning="Hm."), response(reasoning="Hm, hm.")]
    limits = {"type": "length", "min_reasoning": 1, "max_reasoning": 5}
    assert judged(limits, rows) == [
        "reasoning shorter than 1 characters",
        "kept",
        "reasoning longer than 5 characters",
    ]
    assert judged({"type": "length", "max_characters": 7}, rows) == ["kept"] * 3
    loop = response("four", reasoning="I think so. I think so. I think so. I think so.")
    assert judged({"type": "repetition"}, [loop]) == ["kept"]
    assert judged({"type": "repetition", "of": "reasoning"}, [loop]) == ["repeated n-grams"]


def test_reasoning_that_gives_an_evaluation_prompt_away_is_dropped():
    contaminated = ContaminationFilter()
    (verdict,) = contaminated.verdicts([response(reasoning=f"Hm: {EVALUATION[0]}.")], context())
    assert isinstance(verdict, Drop)


def test_an_answer_that_calls_a_tool_is_no_empty_one():
    call = ToolCall(name="f", arguments="{}")
    rows = [response("", tool_calls=(call,)), response("")]
    assert judged({"type": "length"}, rows) == ["kept", "shorter than 1 characters"]
    same = [response("", tool_calls=(call,), sample=n) for n in range(2)] + [response("", sample=2)]
    calls = context("tool_calls")
    agreed = judged({"type": "agreement"}, same, calls)
    assert agreed == ["kept", "kept", "outvoted"]


def test_a_sample_draws_each_row_by_itself():
    rows = [response(prompt=f"prompt {number}") for number in range(2000)]
    half = judged({"type": "sample", "share": 0.5}, rows)
    assert 940 < half.count("kept") < 1060
    assert half[:100] == judged({"type": "sample", "share": 0.5}, rows[:100])
    assert half != judged({"type": "sample", "share": 0.5, "seed": 1}, rows)
    less = judged({"type": "sample", "share": 0.25}, rows)
    assert all(a == "kept" for a, b in zip(half, less, strict=True) if b == "kept")


def test_inadmissible_asks_the_verifier():
    rows = [response(" Animal"), response(" big cat"), response(" 7 plants"), response("")]
    no_label, no_number = "no valid answer (label)", "no valid answer (numeric)"
    assert judged({"type": "inadmissible"}, rows) == ["kept", no_label, no_label, no_label]
    numeric = judged({"type": "inadmissible"}, rows, context("numeric"))
    assert numeric == [no_number, no_number, "kept", no_number]


def test_repetition():
    rows = [
        response(" animal"),
        response("one two three four five six seven eight nine ten"),
        response("I think so. I think so. I think so. I think so."),
        response("no no no no no no"),
        response("很好很好很好很好很好很好"),
    ]
    again = "repeated n-grams"
    assert judged({"type": "repetition"}, rows) == ["kept", "kept", again, again, again]


def test_confidence_by_threshold():
    rows = [response(logprob=p) for p in (-0.1, -1.0, -1.01)] + [response()]
    verdicts = judged({"type": "confidence", "min_logprob": -1.0}, rows)
    assert verdicts == ["kept", "kept", "low confidence of the teacher", "kept"]


def test_confidence_by_share_refuses_the_lowest():
    rows = [response(logprob=-float(n % 10)) for n in range(20)]
    verdicts = judged({"type": "confidence", "drop_lowest": 0.2}, rows)
    judged_rows = zip(rows, verdicts, strict=True)
    assert [row.logprob for row, verdict in judged_rows if verdict != "kept"] == [
        -8.0,
        -9.0,
        -8.0,
        -9.0,
    ]
    assert judged({"type": "confidence", "drop_lowest": 0.2}, []) == []
    assert judged({"type": "confidence", "drop_lowest": 0.2}, [response()]) == ["kept"]


@pytest.mark.parametrize("spelt", [{}, {"min_logprob": -1, "drop_lowest": 0.1}])
def test_confidence_takes_one_threshold(spelt):
    with pytest.raises(ValidationError, match="either min_logprob or drop_lowest"):
        judged({"type": "confidence", **spelt}, [])


def test_the_rules_of_a_table_are_no_repetition():
    table = "| name | size |\n|------|------|\n| fox | 1 |\n| owl | 2 |"
    verdicts = judged(
        {"type": "repetition"}, [response(table), response("= " * 20), response("x " * 9)]
    )
    assert verdicts == ["kept", "repeated n-grams", "repeated n-grams"]


def test_exact_duplicates_and_contradictions():
    rows = [
        response(" animal", "p1"),
        response(" plant", "p2"),
        response(" Animal ", "p1", sample=1),
        response(" animal", "p3"),
        response(" plant", "p3", sample=1),
    ]
    same, other = "duplicate of an earlier answer", "contradicts another answer to the same prompt"
    assert judged({"type": "exact_duplicates"}, rows) == ["kept", "kept", same, other, other]
    kept = judged({"type": "exact_duplicates", "contradictions": "keep"}, rows)
    assert kept == ["kept", "kept", same, "kept", "kept"]


def test_near_duplicates():
    text = "any of various small short-tailed burrowing rodents of the northern hemisphere"
    rows = [
        response(prompt=text),
        response(prompt=text.replace("burrowing", "digging")),
        response(prompt=f"{text}."),
        response(prompt="a tall tree with soft wood that grows near rivers in cold countries"),
        response(prompt=text, sample=1),  # another answer to a prompt that is kept
        response(prompt=f"{text}.", sample=1),
        response(prompt=(Message(role="user", content=f"({text})"),)),
    ]
    near = "near-duplicate of an earlier prompt"
    verdicts = judged({"type": "near_duplicates", "similarity": 0.8}, rows)
    assert verdicts == ["kept", "kept", near, "kept", "kept", near, near]
    verdicts = judged({"type": "near_duplicates", "similarity": 0.6}, rows)
    assert verdicts[1] == near


def test_near_duplicates_do_not_count_the_template():
    template = (
        "Read the following definition with care, and say which category it is: {}\nCategory:"
    )
    evaluation = [template.format(f"w{n} x{n} y{n}") for n in range(30)]
    rows = [response(prompt=template.format(text)) for text in ("oak tree", "big cat", "oak tree!")]
    verdicts = judged({"type": "near_duplicates"}, rows, context(evaluation=evaluation))
    assert verdicts == ["kept", "kept", "near-duplicate of an earlier prompt"]


def test_prompts_that_differ_by_a_sign_are_no_near_duplicates():
    long = "Read all of this with care before you say a word, and then work out what follows: "
    texts = ["72 × 6", "72 ÷ 6", "72 × 6.", "user && token", "user || token", "came 😀", "came 😡"]
    near = "near-duplicate of an earlier prompt"
    expected = ["kept", "kept", near, "kept", "kept", "kept", "kept"]
    for before in ("", long):
        rows = [response(prompt=before + text) for text in texts]
        assert judged({"type": "near_duplicates"}, rows) == expected
        cased = [response(prompt=before + f"power of 5 {unit}") for unit in ("mW", "MW", "mw")]
        assert judged({"type": "near_duplicates"}, cased) == ["kept", "kept", near]
        same = {"type": "exact_duplicates"}
        assert judged(same, rows) == ["kept"] * len(rows)


def test_class_balance_holds_its_share_exactly():
    rows = [response(" animal", f"p{n}") for n in range(80)]
    rows += [response(" plant", f"q{n}") for n in range(10)]
    rows += [response(" stone", f"r{n}") for n in range(10)]
    verdicts = judged({"type": "class_balance", "max_share": 0.5}, rows)
    kept = [row.answer for row, verdict in zip(rows, verdicts, strict=True) if verdict == "kept"]
    assert kept.count(" animal") == 20 and len(kept) == 40  # one more would be more than half
    assert verdicts[:21] == ["kept"] * 20 + ["over the limit of its answer"]
    assert set(judged({"type": "class_balance", "max_share": 0.9}, rows)) == {"kept"}
    assert judged({"type": "class_balance", "max_share": 0.9}, []) == []


def test_a_balance_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="cannot each stay below 30%") as refused:
        judged({"type": "class_balance", "max_share": 0.3}, [response(" animal"), response(" b")])
    assert "max_share of 0.50 or more" in refused.value.fix


def test_contaminated():
    rows = [
        response(prompt=EVALUATION[0].upper()),
        response(prompt="what is it that lives under the ground in the gardens of Europe and eats"),
        response(prompt=EVALUATION[0].replace("under", "below")),
        response(prompt="an animal of the garden"),
        response(f"It is like {EVALUATION[0]}, I would say", prompt="something else"),
        response(prompt=(Message(role="user", content=EVALUATION[0]),)),
    ]
    assert list(ContaminationFilter().verdicts(rows, context())) == [
        Drop("identical to an evaluation prompt"),
        Drop("8 words in a row of an evaluation prompt"),
        Drop("near-duplicate of an evaluation prompt"),
        KEEP,
        Drop("8 words in a row of an evaluation prompt"),
        Drop("identical to an evaluation prompt"),
    ]


def test_decontamination_cannot_be_chosen_away_or_blunted():
    with pytest.raises(ValidationError):
        TypeAdapter(AnyFilter).validate_python({"type": "contaminated"})
    for spelt in ({"words": 50}, {"similarity": 1.0}):
        with pytest.raises(ValidationError):
            ContaminationFilter(**spelt)
