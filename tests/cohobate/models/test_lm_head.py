"""Heads of other families: soft-capping, scaling, bias; what is more than a head is refused."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.generation.likelihood import Continuation, Likelihood
from cohobate.losses.divergences import ForwardKL, Hard
from cohobate.models.lm_head import Head, check_head
from cohobate.teachers.target_sources import LiveSource
from cohobate.training.batches import MicroBatches
from cohobate.training.model_loss import CausalLMLoss
from tests.cohobate.teachers.test_target_sources import (
    examples,
    forward_kl,
    logits_of,
    mean_over_tokens,
)
from tests.tiny_models import make_tokenizer

SMALL = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def family(name: str, config: str = "", **others: Any) -> Any:
    import transformers

    options = (
        others
        or {
            "Gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
            "Granite": {"logits_scaling": 4.0},
            "Cohere": {"logit_scale": 0.25},
            "Phi": {},
            "Qwen2": {},
        }[name]
    )
    known = getattr(transformers, f"{config or name}Config")
    names = set(known().to_dict()) | set(known.attribute_map)
    made = known(**({k: v for k, v in SMALL.items() if k in names} | options))
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(made).eval()


@pytest.mark.parametrize("name", ["Gemma2", "Granite", "Cohere", "Phi", "Qwen2"])
@pytest.mark.usefixtures("one_thread")
def test_the_heads_of_families_as_student_and_teacher(name: str) -> None:
    student, teacher = family(name), family("Qwen2")
    check_head(student)
    head = Head.of(student)
    special = (head.softcap, head.scale, head.bias_V is not None)
    assert (special != (None, 1.0, False)) == (name != "Qwen2")
    for a, b in ((student, teacher), (teacher, student)):
        batch = MicroBatches(examples(), [range(6)], 6, live := LiveSource({"main": b}, 80))[0]
        loss_fn = CausalLMLoss(a, [ForwardKL(), Hard()], 5, live)
        for weight in a.parameters():
            weight.requires_grad_()
        loss, _ = loss_fn(**batch, divisor=len(batch["labels_N"]))
        expected = []
        for row in examples():
            z, t = logits_of(a, row), logits_of(b, row).detach()
            labels = torch.from_numpy(row.ids[2:]).long()
            hard = torch.nn.functional.cross_entropy(z, labels, reduction="none")
            expected.append(hard + forward_kl(t.softmax(-1), z.softmax(-1)))
        reference = mean_over_tokens(expected)
        torch.testing.assert_close(loss.double(), reference, rtol=1e-4, atol=0)
        reference_grads = torch.autograd.grad(reference, list(a.parameters()))
        grads = torch.autograd.grad(loss, list(a.parameters()))
        for grad, reference_grad in zip(grads, reference_grads, strict=True):
            assert (grad - reference_grad).norm() <= 1e-3 * reference_grad.norm() + 1e-6


LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4}
LATENT |= {"v_head_dim": 8}
RECURRENT = {"lru_width": 32, "num_hidden_layers": 3}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("name", "options", "scale", "softcap"),
    [
        ("GraniteMoe", {"logits_scaling": 6.0} | EXPERTS, 1 / 6, None),
        ("Cohere2", {"logit_scale": 0.25}, 0.25, None),
        ("HyperCLOVAX", {"logits_scaling": 0.5}, 0.5, None),  # it multiplies
        (
            "MiniCPM3",
            {"dim_model_base": 8, "v_head_dim": 8} | LATENT,
            0.25,
            None,
        ),  # before the head
        (
            "RecurrentGemma",
            {"logits_soft_cap": 5.0, "lru_width": 32, "num_hidden_layers": 3},
            1.0,
            5.0,
        ),
        ("NanoChat", {"final_logit_softcapping": 7.0}, 1.0, 7.0),
        ("Gemma3", {"final_logit_softcapping": 7.0, "head_dim": 8}, 1.0, 7.0),
        ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "logit_scale": 0.5}, 1.0, None),
    ],
)
def test_what_a_model_does_to_its_logits_is_measured(
    name: str, options: dict[str, Any], scale: float, softcap: float | None
) -> None:
    """The factor has many names, some multiply by it and some divide, and some ignore it."""
    config = "Gemma3Text" if name == "Gemma3" else name
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        model = family(name, config, **options).to(dtype)
        head, ids = Head.of(model), torch.tensor([[5, 6, 7]])
        assert (head.scale, head.softcap) == (pytest.approx(scale, rel=1e-6), softcap)
        with torch.no_grad():
            actual = head.logits(forward(model, ids, torch.arange(3)).last_hidden_ND)
            torch.testing.assert_close(
                actual, model(ids).logits[0].to(actual), rtol=bound, atol=bound
            )


def test_the_loss_of_an_answer_is_that_of_the_models_own_logits() -> None:
    model, tokenizer = family("Granite", logits_scaling=8.0), make_tokenizer()
    continuation = Continuation([5, 6, 7], [8, 9])
    (loss,) = Likelihood(model, tokenizer).losses([continuation])
    with torch.no_grad():
        logp = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0].log_softmax(-1)
    assert loss == pytest.approx(-float(logp[2, 8] + logp[3, 9]) / 2, rel=1e-5)


def test_a_bfloat16_teacher_with_a_capped_head_is_a_head() -> None:
    check_head(family("Gemma2").bfloat16())


def test_more_than_a_head_is_refused() -> None:
    model = family("Qwen2")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 1)
    with pytest.raises(UserError, match="does more"):
        check_head(model)
    assert forward(model, torch.tensor([[3, 4]]), torch.tensor([0, 1])).last_hidden_ND.shape == (
        2,
        32,
    )


def test_a_head_is_measured_beside_passes_of_the_same_model(make_model, tokenizer) -> None:
    ids_BS = torch.tensor([[1, 2, 3, 4]])
    with ThreadPoolExecutor(4) as pool:
        for seed in range(5):
            model = make_model(tokenizer, seed=seed)
            with torch.no_grad():
                expected = model(input_ids=ids_BS).logits

            def measured(_: int, model=model, expected=expected) -> bool:
                with torch.no_grad():
                    beside = torch.allclose(model(input_ids=ids_BS).logits, expected, atol=1e-5)
                return beside and Head.of(model).scale == 1

            assert all(pool.map(measured, range(8)))
