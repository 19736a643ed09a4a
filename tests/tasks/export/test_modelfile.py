"""Ollama's Modelfile, and how the cards say that servers open a student."""

from pathlib import Path
from typing import Any

import pytest

from cohobate import params
from cohobate.data.messages import Message
from cohobate.data.records import Row
from tasks.export.modelfile import chat_pieces, modelfile
from tasks.export.stage import AnyForm

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|end|>\n{% endif %}"
)
REFUSES_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"


def with_template(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_a_template_of_turns_is_written_as_a_go_template(tokenizer: Any) -> None:
    text, note = modelfile(with_template(tokenizer, CHATML), "model.gguf", chats=True, context=512)
    assert text == (
        'FROM ./model.gguf\nTEMPLATE """{{ range .Messages }}'
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|end|>\n'
        '{{ else if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|end|>"\n'
        "PARAMETER temperature 0\nPARAMETER repeat_penalty 1.0\nPARAMETER num_ctx 512\n"
    )
    assert note == "The template is the model's own chat template."


def test_a_default_system_message_and_none_at_all(tokenizer: Any) -> None:
    pieces = chat_pieces(with_template(tokenizer, WITH_DEFAULT + CHATML))
    assert pieces is not None
    assert pieces.render([("user", "Hi")]) == (
        "<|im_start|>system\nBe kind.<|end|>\n<|im_start|>user\nHi<|end|>\n<|im_start|>assistant\n"
    )
    assert '{{ if ne (index .Messages 0).Role "system" }}Be kind.' in pieces.as_go()
    text, note = modelfile(with_template(tokenizer, REFUSES_SYSTEM + CHATML), "m.gguf", chats=True)
    assert '"system"' not in text
    assert note.endswith("It has no system message: Ollama leaves one out.")


@pytest.mark.parametrize(
    "template",
    [
        CHATML + "{{ strftime_now('%d %b') }}",
        CHATML + "{{ messages | length }}",
        CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"),
        "{{ raise_exception('never') }}",
    ],
)
def test_a_template_that_does_more_is_not_written(tokenizer: Any, template: str) -> None:
    text, note = modelfile(with_template(tokenizer, template), "m.gguf", chats=True)
    assert 'TEMPLATE """{{ .Prompt }}"""' in text
    assert "cannot be written as Ollama's" in note


def test_a_model_of_plain_prompts_completes_them_behind_its_prefix(tokenizer: Any) -> None:
    text, note = modelfile(
        with_template(tokenizer, CHATML), "m.gguf", chats=False, prefix="[label] {{x}} "
    )
    assert 'TEMPLATE """[label] {{ "{{" }}x}} {{ .Prompt }}"""' in text
    assert note == "The prompt is completed as it is given: the model learnt no chat template."


def test_the_forms_say_how_servers_open_them(checkpoint: Path, tmp_path: Path) -> None:
    gguf = params.validated(AnyForm, {"type": "gguf"}, "export.forms")
    plain = Row(id="0" * 16, prompt="Hi", answer="x")
    text = gguf.serving(checkpoint, tmp_path, plain)
    assert "ollama create student -f Modelfile" in text
    assert "llama-server -m model.gguf" in text
    assert (tmp_path / "Modelfile").read_text().startswith("FROM ./model.gguf\n")
    safetensors = params.validated(AnyForm, {"type": "safetensors"}, "export.forms")
    assert "/v1/completions" in safetensors.serving(checkpoint, checkpoint, plain)
    chat = plain.model_copy(update={"prompt": (Message(role="user", content="Hi"),)})
    assert "/v1/chat/completions" in safetensors.serving(checkpoint, checkpoint, chat)
