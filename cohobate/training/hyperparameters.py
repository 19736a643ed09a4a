"""Hyperparameters of a training run: length, batch size, optimizer, adapter, precision."""

import math
from typing import Literal

from pydantic import Field, model_validator

from cohobate.data.row_length import TooLong
from cohobate.models import checkpoints
from cohobate.models.number_formats import NumberFormat, Precision, resolve
from cohobate.params import Section
from cohobate.training.adapters import Adapter, Full
from cohobate.training.mixing import Mixing
from cohobate.training.quantization_aware import NoQuantisation, Quantisation

SHORT_ROW = 256
"""Longest row, in tokens, on which eager attention trains faster than SDPA on a CPU."""


class Freeze(Section):
    """Frozen weights. Layers below the lowest trained one need no backward pass."""

    embeddings: bool = True
    """The input embeddings, and with them the head where the two are tied."""
    layers: int = Field(0, ge=0)
    """Number of the lowest transformer blocks that are frozen."""
    head: bool = False
    """The output head, where it is a matrix of its own."""


class Hyperparameters(Section):
    """Length of a training, and how its updates are made."""

    updates: int | None = Field(None, ge=1)
    """Optimiser steps. Give this or `epochs`."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the rows."""
    batch_size: int = Field(32, ge=1)
    """Rows of one update, over all workers."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows of one forward pass of a worker; its whole share of the batch when not given. Gradients
    of the micro-batches are accumulated."""
    # left out of provenance where it is the default: rounds with one source keep their bytes
    mixing: Mixing = Field("proportional", exclude_if=lambda mixing: mixing == "proportional")
    """At what rate rows of each task are drawn, where the round has several sources: in proportion
    to their rows; `equal`; `{temperature: 2}`, between the two; or `{weights: {a: 3, b: 1}}`."""
    optimiser: Literal["adamw", "adamw_8bit", "adamw_offloaded", "adafactor", "sgd"] = "adamw"
    """adamw_8bit keeps AdamW's moments in 8 bits, 2 bytes a trained weight in place of 8 (torchao:
    `pip install -e ".[quantised]"`). adamw_offloaded keeps them in the host's memory and computes
    the step there (never run on a GPU). adafactor keeps a row and a column in place of AdamW's
    second moments; sgd keeps nothing."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls from its peak; cosine and linear end at zero."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the updates over which the learning rate rises from zero to its peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled decay (plain with sgd); biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    clip: float = Field(1.0, gt=0)
    """Largest global norm of the gradient."""
    freeze: Freeze = Freeze()
    adapter: Adapter = Full()
    """Train the weights, or low-rank updates of them."""
    quantisation: Quantisation = NoQuantisation()
    """Quantisation-aware training: the weights are rounded in the forward pass."""
    precision: Precision = "auto"
    """Number format of the matrix products; weights, optimiser and softmax are always float32.
    auto: the format in which the processor or GPU is fast (cohobate/models/number_formats.py)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """auto: sdpa, each row attending to itself alone (cohobate/fast/row_attention.py); where
    the model does not support it, eager on a CPU if rows are short: its backward pass is twice as
    fast. flash_attention_2 and 3: their packages, on a GPU (not tested on one)."""
    activation_checkpointing: bool = Field(False, exclude_if=lambda chosen: not chosen)
    """Keep one hidden state a block for the backward pass, and compute the rest of the block again
    there: a fraction of the memory of activations for a third more time. Same numbers."""
    chunk_tokens: int = Field(512, ge=1)
    """Tokens whose logits are in memory at once."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile for the elementwise part of the loss against a live teacher; same numbers up to
    rounding. auto: on a GPU only. On a CPU compilation takes long at first;
    `benchmarks/kd_step.py --compiled` measures a step both ways."""
    # left out of params where it is the default: earlier runs resume
    sharding: Literal["auto", "on", "off"] = Field(
        "auto", exclude_if=lambda sharding: sharding == "auto"
    )
    """on: each of several workers holds a share of weights, gradients and optimiser, of live
    teachers too, and gathers one block at a time (cohobate/models/sharding.py). off: each has a
    whole copy. auto: on where workers have GPUs. The numbers are the same up to rounding."""
    max_tokens: int = Field(1024, ge=2)
    """Longest row in tokens, prompt and completion."""
    too_long: TooLong = Field("drop", exclude_if=lambda side: side == "drop")
    """Longer rows are left out (`drop`), or cut: `truncate_left` keeps their last tokens,
    `truncate_right` their first ones. They are counted either way. Rows of a signal store must have
    been captured with the same `max_tokens` and `too_long`, unless they are left out here."""
    checkpoint_every: int = Field(500, ge=0)
    """Updates between two training checkpoints, from which a killed run resumes. A run of fewer
    updates has none: it is as quick to train again. 0: never."""
    threads: int = Field(2, ge=1)
    """CPU threads; they are part of what decides the bytes of the result."""

    @model_validator(mode="after")
    def _lora_or_quantisation(self) -> "Hyperparameters":
        if self.adapter.type == "lora" and self.quantisation.type != "none":
            raise ValueError(
                "a merged LoRA leaves the integers' grid: use either lora or quantisation"
            )
        return self

    @model_validator(mode="after")
    def _can_be_sharded(self) -> "Hyperparameters":
        if self.sharding != "on":
            return self
        if self.optimiser == "adafactor":
            raise ValueError("adafactor needs whole gradients: use adamw or sgd, or sharding: off")
        if self.quantisation.type != "none":
            raise ValueError("quantisation rounds whole weights: sharding must be off")
        if not self.can_shard:
            raise ValueError("a base in 4 bits is not divided: sharding must be off")
        return self

    @model_validator(mode="after")
    def _updates_or_epochs(self) -> "Hyperparameters":
        if (self.updates is None) == (self.epochs is None):
            raise ValueError("give either updates or epochs")
        return self

    def updates_over(self, rows: int) -> int:
        """Return the number of optimiser steps for a data set of so many rows."""
        if self.updates is not None:
            return self.updates
        return math.ceil((self.epochs or 0) * rows / self.batch_size)

    @property
    def number_format(self) -> NumberFormat:
        """The number format of the matrix products on this machine."""
        return resolve(self.precision, checkpoints.accelerator())

    @property
    def in_4_bits(self) -> bool:
        """Whether the blocks' frozen weights are in 4 bits."""
        return self.adapter.type == "lora" and self.adapter.base_precision == "nf4"

    @property
    def can_shard(self) -> bool:
        """Whether the weights of this training can be shared among workers."""
        whole = self.optimiser == "adafactor" or self.quantisation.type != "none"
        return not (whole or self.in_4_bits)

    @property
    def shards(self) -> bool:
        """Whether this process is one of several workers that share the weights."""
        from cohobate import processes

        auto = self.sharding == "auto" and self.can_shard and checkpoints.accelerator() != "cpu"
        return processes.world_size() > 1 and (self.sharding == "on" or auto)

    @property
    def compiled(self) -> bool:
        """Whether the loss is compiled on this machine."""
        import torch

        return self.compile == "on" or (self.compile == "auto" and torch.cuda.is_available())

    @property
    def rows_at_once(self) -> int:
        """Rows of one forward pass of one worker."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)
