"""Preparing a model for training: frozen weights, attention, adapter, quantisation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward_pass import find_fast_paths, has_row_attention
from cohobate.fast.sparse_embedding_gradient import sparse_gradient
from cohobate.models import checkpoints, sharding
from cohobate.models.layers import blocks_of
from cohobate.models.mapped_weights import is_mapped
from cohobate.training.hyperparameters import SHORT_ROW, Freeze, Hyperparameters
from cohobate.training.model_loss import ModelLoss


def freeze(model: PreTrainedModel, frozen: Freeze) -> None:
    """Set which weights of a causal LM get no gradient.

    Raises:
        UserError: more blocks are to be frozen than there are.
    """
    model.requires_grad_(True)
    blocks = blocks_of(model)
    if frozen.layers > len(blocks):
        raise UserError(f"cannot freeze {frozen.layers} blocks: the model has {len(blocks)}")
    if frozen.embeddings:
        model.get_input_embeddings().requires_grad_(False)
    if frozen.head and model.get_output_embeddings() is not None:
        model.get_output_embeddings().requires_grad_(False)
    for block in blocks[: frozen.layers]:
        block.requires_grad_(False)


@contextmanager
def attention_implementation(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int
) -> Iterator[None]:
    """Set the attention that trains fastest on rows of `longest` tokens; reset it afterwards."""
    before, name = model.config._attn_implementation, hyperparameters.attention
    if name == "auto":
        name = "eager"
        if model._supports_sdpa:  # older families (GPT-J, BLOOM) do not
            # set first: whether rows attend alone depends on the implementation
            model.set_attn_implementation("sdpa")
            short = longest <= SHORT_ROW and not torch.cuda.is_available()
            name = "eager" if short and not has_row_attention(model) else "sdpa"
    try:
        model.set_attn_implementation(name)
    except (
        ImportError,
        ValueError,
    ) as error:
        raise UserError(
            f"{type(model).__name__} cannot attend by {name}: {str(error).split('. ')[0]}",
            where="attention of the phase",
            fix="attention: auto; or uv pip install flash-attn, on a GPU",
        ) from error
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def checkpointed_activations(
    model: PreTrainedModel, hyperparameters: Hyperparameters
) -> Iterator[None]:
    """Let blocks run again in the backward pass within the block, where the phase says so.

    Raises:
        UserError: the model cannot.
    """
    if not hyperparameters.activation_checkpointing:
        yield
        return
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"{type(model).__name__} cannot compute activations again",
            where="activation_checkpointing of the phase",
            fix="activation_checkpointing: false, and a smaller micro_batch_size",
        )
    model.activation_checkpointing_enable()
    yield
    model.activation_checkpointing_disable()


@contextmanager
def training_setup(
    model: PreTrainedModel, hyperparameters: Hyperparameters, longest: int, seed: int
) -> Iterator[None]:
    """Make a model ready for training within the block; its weights end as float32, in eval mode.

    Args:
        model: changed in place; frozen, adapted and quantised as `hyperparameters` say.
        hyperparameters: of the training.
        longest: tokens of the longest row.
        seed: of an adapter's initial values.
    """
    # what is still in its files becomes float32 as it is sharded
    freeze(model if is_mapped(model) else model.float(), hyperparameters.freeze)
    frozen_blocks = blocks_of(model)[: hyperparameters.freeze.layers]
    with (
        attention_implementation(model, hyperparameters, longest),
        hyperparameters.adapter.attach(model, frozen_blocks, seed),
        hyperparameters.quantisation.prepare(model),
        checkpointed_activations(model, hyperparameters),
        sparse_gradient(model),
    ):
        yield
    model.eval().requires_grad_(True)


@contextmanager
def sharded_weights(loss_fn: ModelLoss, hyperparameters: Hyperparameters) -> Iterator[None]:
    """Share the weights of a loss, and those of its teachers, among the workers within the block.

    Afterwards the first worker has the trained weights whole on its CPU; the others have none.
    """
    if not hyperparameters.shards:
        yield
        return
    device, half = checkpoints.accelerator(), hyperparameters.number_format == "bfloat16"
    for model in [*loss_fn.models, *loss_fn.live_models]:
        find_fast_paths(model, device)
    for teacher in loss_fn.live_models:
        sharding.shard(teacher, [teacher])
    sharding.shard(loss_fn, loss_fn.models, torch.bfloat16 if half else None)
    yield
    # not where training failed: a worker that failed alone would wait for the others
    sharding.restore(loss_fn)
