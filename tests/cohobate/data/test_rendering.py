"""Conversations in the chat templates of the field: what is learnt, held against turn by turn."""

import re
from pathlib import Path
from typing import Any

import pytest
import trl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cohobate.data.messages import Message, ToolCall
from cohobate.data.records import Row
from cohobate.data.rendering import ConversationRenderer, end_of_turn
from cohobate.data.tokenized import encode, learnt_texts, prompt_ids, token_offsets
from cohobate.errors import UserError
from cohobate.models.chat_templates import TemplateSettings

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + '</s>' }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
)
SMOLLM2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_MARKERS = (
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
OF_TRL = ("qwen3", "qwen2_5", "llama3", "llama3_1", "gemma3", "cohere", "deepseek_r1_distill")
OF_TRL += ("phi3", "gptoss")
TEMPLATES = {"mistral": MISTRAL, "smollm2": SMOLLM2, "no markers": NO_MARKERS} | {
    name: (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    for name in OF_TRL
}
SPECIAL = re.compile(
    r"<\|[^|>]+\|>|<｜[^｜]+｜>|<start_of_turn>|<end_of_turn>|</?s>|\[/?INST\]"
)  # fmt: skip
ENDS = {
    "mistral": "</s>",
    "smollm2": "<|im_end|>",
    "no markers": None,
    "qwen3": "<|im_end|>",
    "qwen2_5": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
    "phi3": "<|end|>",
    "gptoss": "<|return|>",
}
TOOLS = """[{"type": "function", "function": {"name": "weather", "description": "of a city",
"parameters": {"type": "object", "properties": {}}}}]"""
CALL = ToolCall(name="weather", arguments='{"city": "Oslo"}', id="call_1")


def tokenizer_of(template: str) -> Any:
    """A tokenizer of bytes, with the special tokens that the template writes."""
    letters = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens=sorted({*SPECIAL.findall(template)}),
    )
    tokenizer.chat_template = template
    return tokenizer


def user(content: str, **fields: Any) -> Message:
    return Message(role="user", content=content, **fields)


def assistant(content: str, **fields: Any) -> Message:
    return Message(role="assistant", content=content, **fields)


def learnt(tokenizer: Any, row: Row) -> list[str]:
    """The learnt tokens of each span as text."""
    encoded = encode(tokenizer, row)
    return [tokenizer.decode(encoded.ids[start:end]) for start, end in encoded.spans]


DIALOGUE = (user("One?"), assistant("Yes, one."), user("Two?"))


@pytest.mark.parametrize("name", TEMPLATES)
class TestEveryTemplate:
    def test_the_answer_ends_as_the_template_ends_a_turn(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        assert end_of_turn(tokenizer) == ENDS[name]
        (text,) = learnt(tokenizer, Row(id="a", prompt=DIALOGUE, answer="No, two."))
        assert text.rstrip().endswith(ENDS[name] or "<eos>") and "No, two." in text
        assert "Yes, one." not in text

    def test_what_precedes_the_answer_is_what_generation_reads(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        encoded = encode(tokenizer, Row(id="a", prompt=DIALOGUE, answer="No, two."))
        assert encoded.prompt_ids == prompt_ids(tokenizer, [DIALOGUE])[0]

    def test_all_turns_are_learnt_and_nothing_of_the_user(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        row = Row(id="a", prompt=DIALOGUE, answer="No, two.", learn="all")
        first, second = learnt(tokenizer, row)
        assert "Yes, one." in first and "No, two." in second
        assert "?" not in first + second, "the user's turns end with question marks"

    def test_the_ids_are_those_of_the_whole_text(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        row = Row(id="a", prompt=DIALOGUE, answer="No, two.", learn="all")
        (rendered,) = ConversationRenderer(tokenizer).render_all([row])
        ids = tokenizer("".join(rendered.pieces), add_special_tokens=False)["input_ids"]
        assert encode(tokenizer, row).ids == ids + [tokenizer.eos_token_id] * (not rendered.closed)

    def test_turn_by_turn_each_learnt_turn_follows_its_prompt(self, name: str) -> None:
        """The whole conversation, cut before a learnt turn, is that turn's prompt."""
        tokenizer = tokenizer_of(TEMPLATES[name])
        row = Row(id="a", prompt=DIALOGUE, answer="No, two.", learn="all")
        renderer = ConversationRenderer(tokenizer)
        (rendered,) = renderer.render_all([row])
        template = renderer._form.template
        for number, turns in enumerate([DIALOGUE[:1], DIALOGUE]):
            chat = [turn.as_chat() for turn in turns]
            if renderer._form.reasoning == "always" and number:
                chat[1]["content"] = "<think>\n\n</think>\n\n" + chat[1]["content"]
            prompt = tokenizer.apply_chat_template(
                chat, chat_template=template, add_generation_prompt=True, tokenize=False
            )
            assert "".join(rendered.pieces[: 2 * number + 1]) == prompt

    def test_reasoning_is_learnt_before_the_answer(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        row = Row(id="a", prompt=DIALOGUE[:1], answer="Yes.", reasoning="Let me count.")
        (text,) = learnt(tokenizer, row)
        assert text.index("Let me count.") < text.index("Yes.")

    def test_a_turn_that_is_not_to_be_learnt_is_not(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        prompt = (DIALOGUE[0], assistant("Yes, one.", learn=False), DIALOGUE[2])
        (text,) = learnt(tokenizer, Row(id="a", prompt=prompt, answer="No.", learn="all"))
        assert "Yes, one." not in text

    def test_offsets_are_those_of_the_learnt_tokens(self, name: str) -> None:
        tokenizer = tokenizer_of(TEMPLATES[name])
        row = Row(id="a", prompt=DIALOGUE, answer="No, two.", learn="all")
        (texts,) = learnt_texts(tokenizer, [row])
        tokens = [len(token_offsets(tokenizer, one.text)) + one.closed for one in texts]
        assert tokens == [end - start for start, end in encode(tokenizer, row).spans]


RENDERS_CALLS = ("qwen3", "qwen2_5", "llama3_1", "gptoss")
WEATHER = user("The weather?", tools=TOOLS)


@pytest.mark.parametrize("name", RENDERS_CALLS)
def test_calls_of_tools_are_learnt_and_their_results_are_not(name: str) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    result = Message(role="tool", content="sunny", name="weather", tool_call_id="call_1")
    prompt = (WEATHER, assistant("", tool_calls=(CALL,)), result)
    call, answer = learnt(tokenizer, Row(id="a", prompt=prompt, answer="It is so.", learn="all"))
    assert "weather" in call and "Oslo" in call and "It is so." in answer
    assert "sunny" not in call + answer
    (only,) = learnt(tokenizer, Row(id="a", prompt=(WEATHER,), answer="", tool_calls=(CALL,)))
    assert "Oslo" in only


@pytest.mark.parametrize("name", ["llama3", "smollm2", "cohere", "mistral", "no markers"])
def test_a_template_that_leaves_tools_or_calls_out_is_refused(name: str) -> None:
    tokenizer = tokenizer_of(TEMPLATES[name])
    with pytest.raises(UserError, match=r"(?s)leaves the tools out.*The weather"):
        prompt_ids(tokenizer, [(WEATHER,)])
    row = Row(id="the-row", prompt=(user("The weather?"),), answer="", tool_calls=(CALL,))
    with pytest.raises(UserError, match=r"(?s)calls of tools.*the-row"):
        encode(tokenizer, row)


def test_a_template_that_leaves_the_system_turn_out_is_refused_unless_it_is_asked_to() -> None:
    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    tokenizer = tokenizer_of(silent)
    prompt = (Message(role="system", content="Be brief."), *DIALOGUE)
    with pytest.raises(UserError, match=r"(?s)leaves the system turn out.*Be brief"):
        prompt_ids(tokenizer, [prompt])
    TemplateSettings(system="drop").write_into(tokenizer)
    assert prompt_ids(tokenizer, [prompt]) == prompt_ids(tokenizer, [DIALOGUE])


def test_a_prompt_that_ends_the_thinking_refuses_reasoning() -> None:
    template = "{%- set enable_thinking = false -%}" + TEMPLATES["qwen3"]
    row = Row(id="the-row", prompt=DIALOGUE[:1], answer="Yes.", reasoning="Let me count.")
    with pytest.raises(UserError, match=r"(?s)reasoning.*the-row.*generate.reasoning=drop"):
        encode(tokenizer_of(template), row)
    (text,) = learnt(tokenizer_of(template), row.model_copy(update={"reasoning": None}))
    assert text == "Yes.<|im_end|>"


def test_settings_of_a_template_do_not_hide_its_training_template() -> None:
    tokenizer = tokenizer_of(TEMPLATES["qwen3"])
    TemplateSettings(system="into_first_user").write_into(tokenizer)
    prompt = (Message(role="system", content="Be brief."), *DIALOGUE)
    row = Row(id="a", prompt=prompt, answer="No.", learn="all")
    first, second = learnt(tokenizer, row)
    assert "Yes, one." in first and "No." in second


def test_what_an_assistant_says_unasked_is_not_learnt() -> None:
    tokenizer = tokenizer_of(TEMPLATES["qwen2_5"])
    prompt = (assistant("Welcome."), user("One?"))
    assert learnt(tokenizer, Row(id="a", prompt=prompt, answer="Yes.", learn="all")) == [
        "Yes.<|im_end|>"
    ]


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_no_blank_is_put_between_a_prompt_and_its_answer(scheme: str) -> None:
    """Tokenizers of the SentencePiece kind begin a text of its own with a blank."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.?", "\n", "<0x0A>", "▁a"]
    backend = Tokenizer(
        models.BPE(vocab={c: n for n, c in enumerate(letters)}, merges=[("▁", "a")])
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    encoded = encode(tokenizer, Row(id="a", prompt="b", answer=" a"))
    whole = tokenizer("b a", add_special_tokens=False)["input_ids"]
    assert encoded.ids == [*whole, tokenizer.eos_token_id]


def test_raw_text_is_learnt_at_every_token() -> None:
    tokenizer = tokenizer_of(NO_MARKERS)
    whole = encode(tokenizer, Row(id="a", prompt="", answer="A text."))
    assert whole.ids[0] == tokenizer.bos_token_id and whole.ids[-1] == tokenizer.eos_token_id
    assert whole.spans == ((1, len(whole.ids)),)
    part = encode(tokenizer, Row(id="a", prompt="", answer="A text.", cut=True))
    assert part.ids == whole.ids[:-1]
