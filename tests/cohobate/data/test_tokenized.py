"""Rows as token ids: apart, closed, and shifted to where they are predicted."""

import pytest

from cohobate.data.messages import Message
from cohobate.data.records import Row, row_id
from cohobate.data.tokenized import encode, encode_all, pad_right
from cohobate.errors import UserError


def row(prompt, answer=None):
    return Row(id=row_id(prompt), prompt=prompt, answer=answer)


def test_prompt_and_answer_are_tokenised_apart(tokenizer):
    together = tokenizer("Definition: a small animal")["input_ids"]
    encoded = encode(tokenizer, row("Definition: a small anim", "al"))
    assert encoded.ids[:-1] != together  # the merge across the border must not happen
    assert tokenizer.decode(encoded.ids[:-1]) == "Definition: a small animal"
    assert encoded.completion_ids[-1] == tokenizer.eos_token_id


def test_a_row_without_answer_has_no_completion(tokenizer):
    assert encode(tokenizer, row("a")).completion_ids == []
    assert encode(tokenizer, row("a", "")).completion_ids == [tokenizer.eos_token_id]


def test_a_conversation_goes_through_the_chat_template(tokenizer):
    turns = (Message(role="system", content="be brief"), Message(role="user", content="hi"))
    encoded = encode(tokenizer, row(turns, "ho"))
    text = "<|system|>be brief<|end|><|user|>hi<|end|><|assistant|>"
    assert encoded.prompt_ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(encoded.prompt_ids)[0] == "<|system|>"


def test_many_rows_are_the_same_as_one_by_one_in_their_order(tokenizer):
    rows = [
        row((Message(role="user", content=str(n)),) if n % 3 == 0 else f"plain {n}", f" {n}")
        for n in range(20)
    ]
    assert list(encode_all(tokenizer, rows)) == [encode(tokenizer, r) for r in rows]


def test_what_cannot_be_encoded_is_named(make_tokenizer, tokenizer):
    with pytest.raises(UserError, match="chat template"):
        encode(make_tokenizer(chat_template=None), row((Message(role="user", content="hi"),)))
    with pytest.raises(UserError, match="no end-of-sequence"):
        encode(make_tokenizer(eos_token=None), row("a"))
    with pytest.raises(UserError, match=row_id("")):
        encode(tokenizer, row(""))


def test_padding_leaves_the_ids_of_equal_rows_alone():
    assert pad_right([[1, 2], [3, 4]], fill=0).tolist() == [[1, 2], [3, 4]]
