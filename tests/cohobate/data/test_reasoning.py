"""Reasoning between tags is told from the answer behind it."""

import pytest

from cohobate.data.reasoning import inline, split
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Completion


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<think>\nHm.\n</think>\n\nfour", "four", "Hm."),
        ("Hm.\n</think>\n\nfour", "four", "Hm."),  # the template writes the opening tag
        ("<think>\n\n</think>\n\nfour", "four", ""),
        ("<think>Hm, hm, hm", "", "Hm, hm, hm"),  # cut off in its reasoning
        ("[THINK]Hm.[/THINK]four", "four", "Hm."),
        (" animal", " animal", ""),
        ("<thinking>Hm.</thinking> four", "<thinking>Hm.</thinking> four", ""),  # a prompt's form
        ("a <think> tag is a tag", "a <think> tag is a tag", ""),
    ],
)
def test_split(text, answer, reasoning):
    assert split(text) == (answer, reasoning)


def test_what_is_put_together_comes_apart_again():
    assert split(inline("four", "Hm.")) == ("four", "Hm.")
    assert inline("four", "") == "four"


def test_the_answer_of_a_local_model_is_what_stands_behind_its_reasoning(tokenizer):
    ids = tokenizer.encode("<think>Hm.</think> four", add_special_tokens=False)
    answer = to_answer(tokenizer, Completion(ids, "length", None, []))
    assert (answer.text, answer.reasoning) == ("four", "Hm.")
