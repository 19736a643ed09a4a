"""Width: what gives nothing goes, and what is left is a model of its kind."""

import pytest
import torch

from cohobate.data.records import Row, row_id
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.students.importance import measure_importance, projections
from cohobate.students.layer_cutting import layer_stack
from cohobate.students.width_cutting import keep_widths

PROMPTS = [" small animal", " plant", " a small person"]
ROWS = [Row(id=row_id(p), prompt=p, answer=" animal") for p in PROMPTS]


@torch.no_grad()
def silence(model, group: int, neurons: list[int]) -> None:
    """Let a group of heads and some neurons give nothing."""
    for block in layer_stack(model):
        block.self_attn.o_proj.weight[:, group * 16 : (group + 1) * 16] = 0
        block.self_attn.v_proj.weight[group * 8 : (group + 1) * 8] = 0
        block.mlp.up_proj.weight[neurons] = 0


def logits(model, tokenizer):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits


def test_parts_that_give_nothing_are_cut_and_nothing_changes(model, tokenizer, tmp_path) -> None:
    silence(model, group=0, neurons=list(range(5, 29)))
    before = logits(model, tokenizer)
    matters = measure_importance(model, tokenizer, ROWS, widths=True)
    assert matters.groups_LG[:, 0].max() == 0 and matters.groups_LG[:, 1].min() > 0
    keep_widths(model, matters.groups_LG, matters.neurons_LI, groups=1, neurons=40)
    torch.testing.assert_close(logits(model, tokenizer), before, rtol=1e-4, atol=1e-5)
    checkpoints.save(model, tokenizer, tmp_path / "narrow", {})
    loaded, _ = checkpoints.load(tmp_path / "narrow")  # the configuration says what there is
    assert torch.equal(logits(loaded, tokenizer), logits(model, tokenizer))
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (2, 1)
    assert (loaded.config.head_dim, loaded.config.intermediate_size) == (8, 40)
    options = {"max_new_tokens": 5, "do_sample": False}
    ids = torch.tensor([[5, 6, 7]])
    cached = loaded.generate(ids, attention_mask=torch.ones_like(ids), **options)
    plain = loaded.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(cached, plain)


def test_biases_are_cut_with_their_rows(tokenizer) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "vocab_size": len(tokenizer)}
    config = Qwen2Config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **sizes)
    model = Qwen2ForCausalLM(config).eval()
    matters = measure_importance(model, tokenizer, ROWS, widths=True)
    keep_widths(model, matters.groups_LG, matters.neurons_LI, groups=1, neurons=12)
    assert model.model.layers[0].self_attn.q_proj.bias.shape == (16,)
    logits(model, tokenizer)


def test_a_layer_that_passes_its_input_on_matters_least(model, tokenizer) -> None:
    with torch.no_grad():
        block = layer_stack(model)[2]
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.mul_(1e-3)
    scores = measure_importance(model, tokenizer, ROWS, widths=False).layers_L
    assert scores.argmin() == 2 and scores[2] < 1e-4


def test_importance_is_the_mean_over_real_tokens_alone(model, tokenizer) -> None:
    together = measure_importance(model, tokenizer, ROWS, widths=True)
    apart = [measure_importance(model, tokenizer, [row], widths=True) for row in ROWS]
    lengths = [len(tokenizer(r.prompt + r.answer)["input_ids"]) + 1 for r in ROWS]
    mean = sum(a.layers_L * n for a, n in zip(apart, lengths, strict=True)) / sum(lengths)
    torch.testing.assert_close(together.layers_L, mean, rtol=1e-4, atol=1e-6)
    total = sum(a.neurons_LI.square() for a in apart).sqrt()
    torch.testing.assert_close(together.neurons_LI, total, rtol=1e-4, atol=1e-5)


def test_another_kind_of_block_is_refused(tokenizer) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    with pytest.raises(UserError, match="no attention and gated MLP"):
        projections(model.transformer.h[0])
