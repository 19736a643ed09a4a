"""Heads of other families: soft-capping, scaling, bias; what is more than a head is refused."""

from typing import Any

import pytest
import torch

from tasks.errors import UserError
from tasks.learning.batches import Batches
from tasks.learning.learner import Learner
from tasks.losses.divergences import ForwardKL, Hard
from tasks.models.heads import Head, check_head
from tasks.models.seen import look
from tasks.teaching.origins import Live
from tests.tasks.teaching.test_origins import examples, forward_kl, logits_of, mean_over_tokens

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


def family(name: str) -> Any:
    import transformers

    options = {
        "Gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
        "Granite": {"logits_scaling": 4.0},
        "Cohere": {"logit_scale": 0.25},
        "Phi": {},
        "Qwen2": {},
    }[name]
    config = getattr(transformers, f"{name}Config")(**(SMALL | options))
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", ["Gemma2", "Granite", "Cohere", "Phi", "Qwen2"])
@pytest.mark.usefixtures("one_thread")
def test_the_heads_of_families_as_student_and_teacher(name: str) -> None:
    student, teacher = family(name), family("Qwen2")
    check_head(student)
    head = Head.of(student)
    special = (head.softcap, head.scale, head.bias_V is not None)
    assert (special != (None, 1.0, False)) == (name != "Qwen2")
    for a, b in ((student, teacher), (teacher, student)):
        batch = Batches(examples(), [range(6)], 6, live := Live({"main": b}, 80))[0]
        learner = Learner(a, [ForwardKL(), Hard()], 5, live)
        for weight in a.parameters():
            weight.requires_grad_()
        loss, _ = learner(**batch, divisor=len(batch["targets_N"]))
        expected = []
        for row in examples():
            z, t = logits_of(a, row), logits_of(b, row).detach()
            labels = torch.from_numpy(row.ids[2:]).long()
            hard = torch.nn.functional.cross_entropy(z, labels, reduction="none")
            expected.append(hard + forward_kl(t.softmax(-1), z.softmax(-1)))
        reference = mean_over_tokens(expected)
        torch.testing.assert_close(loss.double(), reference, rtol=1e-4, atol=0)
        slopes = torch.autograd.grad(reference, list(a.parameters()))
        for found, slope in zip(torch.autograd.grad(loss, a.parameters()), slopes, strict=True):
            assert (found - slope).norm() <= 1e-3 * slope.norm() + 1e-6


def test_a_bfloat16_teacher_with_a_capped_head_is_a_head() -> None:
    check_head(family("Gemma2").bfloat16())


def test_more_than_a_head_is_refused() -> None:
    model = family("Qwen2")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + 1)
    with pytest.raises(UserError, match="does more"):
        check_head(model)
    assert look(model, torch.tensor([[3, 4]]), torch.tensor([0, 1])).last_ND.shape == (2, 32)
