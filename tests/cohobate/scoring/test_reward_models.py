"""Rewards in batches are those of one answer at a time."""

import pytest
import torch

from cohobate.data.messages import Message
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import FORCED
from cohobate.scoring.reward_models import RewardModel


@pytest.fixture
def folder(tokenizer, tmp_path, one_thread):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    def made(labels: int = 1):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_labels=labels,
            pad_token_id=tokenizer.pad_token_id, initializer_range=0.2,
        )  # fmt: skip
        LlamaForSequenceClassification(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return made


@pytest.mark.parametrize("forced", ["float32", "bfloat16"])
def test_it_runs_on_the_accelerator_in_the_native_format(monkeypatch, folder, forced):
    monkeypatch.setenv(FORCED, forced)
    monkeypatch.setattr(checkpoints, "accelerator", lambda: "meta")
    model = RewardModel.of(folder(), "auto").model
    assert model.device.type == "meta" and model.dtype is getattr(torch, forced)


def test_rewards_do_not_depend_on_the_batch(folder):
    model = RewardModel.of(folder(), "float32")
    pairs = [(f"prompt {n}", " answer" * (1 + n % 5)) for n in range(40)]
    pairs.append(((Message(role="user", content="hi"),), "ho"))
    alone = [next(model.scores([one])) for one in pairs]
    assert list(model.scores(pairs)) == pytest.approx(alone, abs=2e-4)
    assert len(set(alone)) > 30


def test_a_conversation_is_rendered_by_its_own_template_with_the_tools(folder):
    model = RewardModel.of(folder(), "float32")
    model.tokenizer.chat_template = (
        "<|pad|>{% if tools %}{{ tools[0]['name'] }}{% endif %}"
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    )
    turns = (Message(role="system", content="Hm."), Message(role="user", content="hi"))
    offered = (turns[0].model_copy(update={"tools": '[{"name": "f"}]'}), turns[1])
    said = "<|system|>Hm.<|user|>hi<|assistant|>ho"
    assert model._text(turns, "ho") == f"<|pad|>{said}"
    assert model._text(offered, "ho") == f"<|pad|>f{said}"


def test_a_text_begins_once(folder, monkeypatch):
    """Llama 3's template writes the token that its tokenizer puts before each text."""
    model = RewardModel.of(folder(), "float32")
    model.tokenizer.chat_template = "<|pad|>{% for m in messages %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(RewardModel, "_start", "<|pad|>")
    assert model._text((Message(role="user", content="hi"),), "ho") == "hiho"


def test_what_is_no_reward_model_is_refused(folder, checkpoint):
    with pytest.raises(UserError, match="not a reward model"):
        RewardModel.of(checkpoint, "float32")  # its head was never trained
    with pytest.raises(UserError, match="not a reward model"):
        RewardModel.of(folder(labels=3), "float32")
