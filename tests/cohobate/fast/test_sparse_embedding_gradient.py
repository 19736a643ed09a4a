"""The gradient of the embeddings is autograd's, however it comes about."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cohobate.fast.sparse_embedding_gradient import sparse_gradient
from cohobate.training.model_loss import CausalLMLoss
from tests.cohobate.training.test_trainer import ALL, examples, settings, train

IDS_BS = torch.tensor([[1, 2, 2, 3], [5, 0, 1, 1]])


def model_of(*, tied, padding=None):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=11, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, tie_word_embeddings=tied, pad_token_id=padding,
        )
    )  # fmt: skip


def gradients(model, batches=1):
    for n in range(batches):
        model(input_ids=IDS_BS + n, labels=IDS_BS + n).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [None, 1])
@pytest.mark.parametrize("batches", [1, 3])
def test_it_is_what_autograd_gives(tied, padding, batches):
    expected = gradients(model_of(tied=tied, padding=padding), batches)
    model = model_of(tied=tied, padding=padding)
    with sparse_gradient(model):
        actual = gradients(model, batches)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_frozen_embedding_gets_none_and_the_model_is_left_as_it_was():
    model = model_of(tied=False)
    embedding = model.get_input_embeddings()
    embedding.requires_grad_(False)
    with sparse_gradient(model):
        model(input_ids=IDS_BS, labels=IDS_BS).loss.backward()
        assert type(embedding) is not nn.Embedding
    assert embedding.weight.grad is None
    assert type(embedding) is nn.Embedding
    assert model.get_output_embeddings().weight.grad is not None


def test_without_a_gradient_nothing_is_noted():
    model = model_of(tied=True)
    with sparse_gradient(model), torch.no_grad():
        assert not model(input_ids=IDS_BS).logits.requires_grad
    assert model.get_input_embeddings().weight.grad is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batch_size", [8, 4])
def test_memory_written_again_changes_no_update(monkeypatch, precision, micro_batch_size):
    chosen = settings(freeze=ALL, precision=precision, micro_batch_size=micro_batch_size)
    weights = []
    for fresh in (False, True):
        if fresh:
            monkeypatch.setattr(CausalLMLoss, "zero_grad", nn.Module.zero_grad)
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                num_attention_heads=2, tie_word_embeddings=True,
            )
        )  # fmt: skip
        train(model, examples(), chosen)
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name


def test_a_copy_made_within_the_block_reads_its_own_weights():
    model = model_of(tied=True)
    with sparse_gradient(model):
        frozen = copy.deepcopy(model).requires_grad_(False).to(torch.bfloat16)
        with torch.no_grad():
            model.get_input_embeddings().weight.zero_()
        embedded = frozen.get_input_embeddings()(IDS_BS)
    assert embedded.dtype == torch.bfloat16
    assert embedded.abs().sum() > 0
    assert type(model.get_input_embeddings()) is nn.Embedding
