"""Rank: directions without power go and nothing changes; what is left is a model of its kind."""

import json

import pytest
import torch

from cohobate.data.records import INIT_STUDENT, LABELLED, MODELS, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.layers import body_of
from cohobate.students.layer_cutting import layer_stack
from cohobate.students.rank_cutting import keep_rank
from tests.tasks.init_student.test_init_student import build

__all__ = ["build"]
PROMPTS = [" small animal", " plant", " a small person"]
ROWS = [Row(id=row_id(p), prompt=p, answer=" animal") for p in PROMPTS]


def logits(model, tokenizer):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(PROMPTS[0])["input_ids"]])).logits


@torch.no_grad()
def flatten(model, rank: int) -> None:
    """Let hidden states lie in `rank` directions that are no axes."""
    width = model.config.hidden_size
    basis_DO = torch.linalg.qr(torch.randn(width, rank, generator=torch.manual_seed(0)))[0]
    project_DD = basis_DO @ basis_DO.T
    model.get_input_embeddings().weight.copy_(model.get_input_embeddings().weight @ project_DD)
    for block in layer_stack(model):
        for module in (block.self_attn.o_proj, block.mlp.down_proj):
            module.weight.copy_(project_DD @ module.weight)
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.uniform_(0.5, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_directions_without_power_are_cut_and_nothing_changes(
    make_model, tokenizer, tmp_path, tied
) -> None:
    model = make_model(tokenizer, tie_word_embeddings=tied)
    flatten(model, 20)
    if not tied:  # of a tied head, the last norm's weight is only near
        torch.nn.init.uniform_(body_of(model).norm.weight, 0.5, 2)
    before = logits(model, tokenizer)
    assert keep_rank(model, tokenizer, ROWS, 20) == pytest.approx(1)
    torch.testing.assert_close(logits(model, tokenizer), before, rtol=1e-3, atol=1e-3)
    checkpoints.save(model, tokenizer, tmp_path / "low-rank", {})
    loaded, _ = checkpoints.load(tmp_path / "low-rank")
    assert torch.equal(logits(loaded, tokenizer), logits(model, tokenizer))
    assert (loaded.config.hidden_size, loaded.config.head_dim) == (20, 8)
    assert loaded.model.layers[0].mlp.up_proj.weight.shape == (64, 20)


def test_the_share_of_power_falls_with_the_rank(make_model, tokenizer) -> None:
    shares = [keep_rank(make_model(tokenizer), tokenizer, ROWS, rank) for rank in (4, 16, 32)]
    assert 0 < shares[0] < shares[1] < shares[2] == pytest.approx(1)


def test_biases_are_cut_with_their_rows(tokenizer) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "vocab_size": len(tokenizer)}
    config = Qwen2Config(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **sizes)
    model = Qwen2ForCausalLM(config).eval()
    torch.nn.init.normal_(model.model.layers[1].self_attn.q_proj.bias)
    before = logits(model, tokenizer)
    keep_rank(model, tokenizer, ROWS, 32)
    torch.testing.assert_close(logits(model, tokenizer), before, rtol=1e-3, atol=1e-4)


def test_other_kinds_and_sizes_are_refused(model, tokenizer) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaConfig, GemmaForCausalLM

    with pytest.raises(UserError, match="multiple of its 4 heads") as caught:
        keep_rank(model, tokenizer, ROWS, 18)
    assert caught.value.fix == "cohobate run --set init_student.rank=16"
    with pytest.raises(UserError, match="the teacher's is 32"):
        keep_rank(model, tokenizer, ROWS, 36)
    sizes = {"hidden_size": 32, "intermediate_size": 24, "head_dim": 8, "num_hidden_layers": 2}
    sizes |= {"vocab_size": len(tokenizer), "num_attention_heads": 4, "num_key_value_heads": 2}
    gemma = GemmaForCausalLM(GemmaConfig(**sizes)).eval()  # its norms multiply by 1 + weight
    for block in layer_stack(gemma):
        torch.nn.init.uniform_(block.input_layernorm.weight)
    for other in (gemma, Gemma2ForCausalLM(Gemma2Config(**sizes)).eval()):  # norms behind its MLP
        with pytest.raises(UserError, match="cannot be rotated"):
            keep_rank(other, tokenizer, ROWS, 16)


def test_a_student_of_low_rank_is_what_preflight_foresaw(build) -> None:
    write_rows(LABELLED, ROWS)
    shape = {"layers": [0, 2], "rank": 16, "rows": "data/collect/labelled.jsonl"}
    records = []
    for _ in range(2):
        build(type="teacher_layers", **shape)
        records.append(checkpoints.fingerprint(INIT_STUDENT))
    assert records[0] == records[1]
    summary, pinned = (json.loads(p.read_text()) for p in (INIT_STUDENT / "summary.json", MODELS))
    assert {name: pinned["student"][name] for name in summary} == summary
    assert summary["width"] == 16
