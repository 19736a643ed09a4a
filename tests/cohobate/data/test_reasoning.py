"""Reasoning between tags is told from the answer behind it."""

import pytest

from cohobate.data.reasoning import inline, opens_reasoning, split
from cohobate.generation.decoding import to_answer
from cohobate.generation.requests import Completion, Request


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
    answer = to_answer(tokenizer, Completion(ids, "length", None, []), Request([]))
    assert (answer.text, answer.reasoning) == ("four", "Hm.")


@pytest.mark.parametrize("prompt", ["What?<think>\n", "What? [THINK]", "What?"])
def test_an_answer_that_is_cut_off_in_reasoning_that_the_prompt_opened_is_all_reasoning(
    tokenizer, prompt
):
    ids = tokenizer.encode("Hm, hm", add_special_tokens=False)
    request = Request(tokenizer.encode(prompt, add_special_tokens=False))
    cut = to_answer(tokenizer, Completion(ids, "length", None, []), request)
    assert cut.is_cut_in_reasoning is opens_reasoning(prompt) is (prompt != "What?")
    assert (cut.text, cut.reasoning) == (("", "Hm, hm") if cut.reasoning else ("Hm, hm", None))
    ended = Completion([*ids, tokenizer.eos_token_id], "stop", None, [])
    assert to_answer(tokenizer, ended, request).text == "Hm, hm"  # it skipped the reasoning
