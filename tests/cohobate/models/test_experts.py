"""Mixtures of experts: upcycled they give the same logits, merged they are dense models again."""

import pytest
import torch

from cohobate.data.records import INIT_STUDENT, LABELLED, Row, row_id, write_rows
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.experts import dense, expert_shares, upcycle
from cohobate.models.upcycling import Upcycling
from cohobate.params import ParamsError, validated

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
REAL = torch.tensor([[True] * 4, [True] * 3 + [False]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@torch.no_grad()
def spread(sparse) -> None:
    """Let experts differ: the second of each block gives nothing."""
    for block in sparse.model.layers:
        block.mlp.experts.down_proj[1].zero_()


def test_an_upcycled_model_gives_the_same_logits_and_is_a_mixtral(
    model, tokenizer, tmp_path
) -> None:
    sparse = upcycle(model, Upcycling(experts=3, per_token=2))
    torch.testing.assert_close(logits(sparse), logits(model), rtol=1e-4, atol=1e-5)
    checkpoints.save(sparse, tokenizer, tmp_path / "sparse", {})
    loaded, _ = checkpoints.load(tmp_path / "sparse")
    assert type(loaded).__name__ == "MixtralForCausalLM"
    assert torch.equal(logits(loaded), logits(sparse))
    again = upcycle(model, Upcycling(experts=3, per_token=2))
    assert torch.equal(
        again.model.layers[0].mlp.gate.weight, sparse.model.layers[0].mlp.gate.weight
    )


def test_the_work_of_all_experts_that_read_a_token_is_counted(model, tmp_path) -> None:
    from cohobate.evaluation.footprint import footprint

    sparse = upcycle(model, Upcycling(experts=4, per_token=2))
    one, two = (footprint(m, tmp_path, context=10).flops_per_token for m in (model, sparse))
    # in each of four layers another MLP of three matrices, and a router
    assert two == one + 4 * 2 * (3 * 32 * 64 + 32 * 4)


@pytest.mark.parametrize("kind", ["mean", "most_used"])
def test_equal_experts_merge_into_the_model_that_they_came_of(model, kind) -> None:
    sparse = upcycle(model, Upcycling(experts=3))
    merged = dense(sparse, kind, expert_shares(sparse, [(IDS, REAL)]))
    assert type(merged) is type(model)
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=1e-5)


def test_shares_are_the_routers_weights_over_real_tokens(model) -> None:
    sparse = upcycle(model, Upcycling(experts=3))
    shares_LG = expert_shares(sparse, [(IDS, REAL)])
    torch.testing.assert_close(shares_LG.sum(-1), torch.ones(4, dtype=torch.float64))
    hidden = sparse.model(IDS, output_hidden_states=True).hidden_states[0]
    block = sparse.model.layers[0]
    residual = (
        hidden
        + block.self_attn(
            block.input_layernorm(hidden),
            position_embeddings=sparse.model.rotary_emb(hidden, torch.arange(4)[None]),
            attention_mask=None,
        )[0]
    )
    read = block.post_attention_layernorm(residual)[REAL]
    weights, chosen = (read @ block.mlp.gate.weight.T).softmax(-1).topk(2)
    expected = torch.zeros(len(read), 3).scatter(1, chosen, weights / weights.sum(-1, True)).mean(0)
    torch.testing.assert_close(shares_LG[0].float(), expected, rtol=1e-3, atol=1e-4)


def test_the_mean_is_weighted_and_the_most_used_is_one_expert(model) -> None:
    sparse = upcycle(model, Upcycling(experts=2))
    spread(sparse)
    down = model.model.layers[0].mlp.down_proj.weight
    shares = torch.tensor([[0.25, 0.75]] * 4)
    for kind, factor in (("mean", 0.25), ("most_used", 0.0)):
        merged = dense(sparse, kind, shares)
        torch.testing.assert_close(merged.model.layers[0].mlp.down_proj.weight, factor * down)


def test_what_has_no_experts_or_cannot_have_them_is_refused(model, tokenizer) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UserError, match="no experts"):
        dense(model, "mean")
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50))
    with pytest.raises(UserError, match="no mixture of experts"):
        upcycle(other, Upcycling())
    with pytest.raises(ParamsError, match="at most experts"):
        validated(Upcycling, {"experts": 2, "per_token": 3}, "adapt.upcycle")


def test_a_dense_student_of_a_sparse_teacher_is_what_preflight_foresaw(
    project, tokenizer, model, tmp_path
) -> None:
    import json

    from cohobate.data.records import MODELS
    from cohobate.scoring.verifiers import Label, Task
    from cohobate.students.initialization import StudentInit
    from cohobate.teachers.teacher import Teacher
    from tasks.init_student.stage import run
    from tests.tasks.preflight.test_preflight import run_stage as preflight

    sparse = upcycle(model, Upcycling(experts=2))
    checkpoints.save(sparse, tokenizer, tmp_path / "elsewhere/sparse", {})
    prompts = ["a small plant", " animal person"]
    write_rows(LABELLED, [Row(id=row_id(p), prompt=p, answer=" animal") for p in prompts])
    terms = {"licence": "Apache-2.0", "outputs_may_train": True}
    teachers = {"main": Teacher(model=str(tmp_path / "elsewhere/sparse"), **terms)}
    fields = {"type": "teacher_layers", "layers": [0, 3], "experts": "mean"}
    fields["rows"] = "data/collect/labelled.jsonl"
    student = validated(StudentInit, fields, "init_student")
    preflight(teachers, student)
    run(student, teachers, Task(verifier=Label(type="label")))
    made, _ = checkpoints.load(INIT_STUDENT)
    assert type(made).__name__ == "LlamaForCausalLM"
    summary, pinned = (json.loads(p.read_text()) for p in (INIT_STUDENT / "summary.json", MODELS))
    assert summary["parameters"] == pinned["student"]["parameters"] == made.num_parameters()


def test_experts_of_a_dense_teacher_are_refused_by_preflight(project, checkpoint) -> None:
    from cohobate.students.initialization import StudentInit
    from cohobate.teachers.teacher import Teacher
    from tests.tasks.preflight.test_preflight import run_stage as preflight

    terms = {"licence": "Apache-2.0", "outputs_may_train": True}
    fields = {"type": "teacher_layers", "layers": [0], "experts": "mean"}
    fields["rows"] = "data/collect/labelled.jsonl"
    student = validated(StudentInit, fields, "init_student")
    with pytest.raises(UserError, match="no experts that could") as caught:
        preflight({"main": Teacher(model=str(checkpoint), **terms)}, student)
    assert "adapt.upcycle" in caught.value.fix
