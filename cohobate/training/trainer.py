"""Training of a causal language model on text and on a teacher's distributions: `fit`.

The loop is transformers' Trainer (cohobate/training/fused_trainer.py). Four things differ from it.
Only the hidden states of completion tokens go through the head, fused with the loss
(cohobate/losses/fused_head.py). The loss is a mean over the completion tokens of the whole update,
over all its micro-batches and workers. A loss or a gradient that is not finite stops the run before
the step. And a killed run resumes from verified checkpoints (cohobate/training/checkpointing.py).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from cohobate import processes
from cohobate.data.examples import Example, TargetCollator, fingerprint
from cohobate.errors import UserError
from cohobate.losses.divergences import Hard
from cohobate.losses.soft_targets import ResponseTerm
from cohobate.models import seeing
from cohobate.models.lm_head import check_head
from cohobate.teachers.target_sources import TargetSource
from cohobate.training import checkpointing
from cohobate.training.arguments import training_arguments
from cohobate.training.batches import MicroBatches, plan_batches
from cohobate.training.checkpointing import CheckpointDir
from cohobate.training.dev_checks import current_tracker
from cohobate.training.eight_bit_adamw import as_it_is_written
from cohobate.training.fused_trainer import FusedTrainer, Rollouts
from cohobate.training.history import Update
from cohobate.training.hyperparameters import Hyperparameters
from cohobate.training.memory_check import check_training_memory
from cohobate.training.model_loss import CausalLMLoss, ModelLoss
from cohobate.training.model_setup import sharded_weights, training_setup
from cohobate.training.offloaded_adamw import offloaded
from cohobate.training.packages import check_packages


def fit(
    model: PreTrainedModel,
    examples: Sequence[Example],
    terms: Sequence[ResponseTerm],
    hyperparameters: Hyperparameters,
    *,
    seed: int = 0,
    label: str = "training",
    target_source: TargetSource | None = None,
    vocabulary: int | None = None,
    rollouts: Rollouts | None = None,
    loss_fn: ModelLoss | None = None,
    collator: TargetCollator | None = None,
) -> list[Update]:
    """Train a causal LM in place (as float32, left in eval mode); return the history of updates.

    Supervised fine-tuning, as by TRL's SFTTrainer with `completion_only_loss=True`:

        from cohobate.data.examples import examples_of
        from cohobate.data.records import Row
        from cohobate.data.tokenized import encode_all
        from cohobate.losses.divergences import Hard
        from cohobate.training import Hyperparameters, fit

        rows = [Row(id="0", prompt="Definition: a small rodent\\nCategory:", answer=" animal")]
        examples = examples_of(rows, encode_all(tokenizer, rows))
        history = fit(model, examples, [Hard()], Hyperparameters(updates=10, batch_size=1))

    For distillation give divergences such as `ForwardKL()`, and a `target_source`. Nothing is
    written to disk, unless the call lies in a `checkpointing.resumable` block. Of several workers
    that share the weights (`sharding`) the first one has the trained model, on its CPU.

    Args:
        model: any causal LM of transformers.
        examples: prompts and completions as token ids, in any order.
        terms: the loss is their weighted sum for each completion token. `Hard()` is cross-entropy
            with the completion; cohobate/losses/divergences.py has the divergences.
        hyperparameters: length of training, batch size, optimizer, adapter, precision.
        seed: of the order of rows, and of dropout.
        label: name of the run in progress and messages, such as `train kd, seed 1`.
        target_source: gives the teacher's distributions; every term but `Hard` needs it.
        vocabulary: number of real ids (`len(tokenizer)`) where the head is padded to be wider.
        rollouts: generates the rows of each update just before it, for on-policy training.
        loss_fn: computes the loss, in place of `terms`, `target_source` and `vocabulary`.
        collator: gives what `loss_fn` needs of a micro-batch's rows beside their ids.

    Raises:
        UserError: no example, no `target_source`, too little memory, or a head that is more than
            linear; or a loss or gradient that is not finite, with the rows' keys.
    """
    settings, has_loss = hyperparameters, loss_fn is not None
    _check_inputs(model, examples, terms, settings, target_source, has_loss=has_loss, label=label)
    data, curriculum_stages = _plan_data(examples, settings, seed, collator or target_source)
    chunk, plan = hyperparameters.chunk_tokens, (hyperparameters, curriculum_stages)
    loss_fn = loss_fn or CausalLMLoss(
        model, terms, chunk, target_source, vocabulary, compiled=hyperparameters.compiled
    )
    return fit_batches(model, data, loss_fn, *plan, seed=seed, label=label, rollouts=rollouts)


def fit_batches(
    model: PreTrainedModel,
    data: MicroBatches,
    loss_fn: ModelLoss,
    hyperparameters: Hyperparameters,
    curriculum_stages: Sequence[int],
    *,
    seed: int,
    label: str,
    rollouts: Rollouts | None = None,
) -> list[Update]:
    """Train a causal LM in place on batches that are planned already; the rest is as in `fit`.

    Args:
        model: the model in `loss_fn` that is frozen, adapted and quantised by `hyperparameters`.
        data: this worker's micro-batches of all updates.
        loss_fn: computes the loss of a micro-batch.
        hyperparameters: as in `fit`.
        curriculum_stages: stage of the curriculum of each update.
        seed: as in `fit`.
        label: as in `fit`.
        rollouts: as in `fit`.
    """
    check_packages({label: hyperparameters})
    torch.set_num_threads(hyperparameters.threads)
    # of all examples, not of this worker's: workers choose the same attention
    longest = max(_length(model, example) for example in data.examples)
    checkpoints = _checkpoint_dir(hyperparameters, data.examples, len(curriculum_stages))
    dev, run = current_tracker(), checkpointing.current_run()
    with (
        training_setup(model, hyperparameters, longest, seed),
        tempfile.TemporaryDirectory() as scratch,
    ):
        if dev:
            folder = run.best_folder() if run else Path(scratch) / "best"
            dev.open(folder, len(curriculum_stages))
        # first: with them accelerate sets the worker's device, where its share of weights goes
        arguments = training_arguments(hyperparameters, len(curriculum_stages), seed, scratch)
        with sharded_weights(loss_fn, hyperparameters), as_it_is_written(hyperparameters):
            history: list[Update] = []
            if not (dev and dev.is_over):
                trainer = FusedTrainer(
                    loss_fn,
                    arguments,
                    data,
                    label,
                    curriculum_stages,
                    checkpoints=checkpoints,
                    rollouts=rollouts,
                    optimizer=offloaded(hyperparameters),
                    dev=dev,
                )
                trainer.train_remaining()
                history = trainer.history
                # before the weights are made whole: gradients and optimiser go
                del trainer
            if dev:
                dev.finish(loss_fn)
    return history


def _check_inputs(
    model: PreTrainedModel,
    examples: Sequence[Example],
    terms: Sequence[ResponseTerm],
    hyperparameters: Hyperparameters,
    target_source: TargetSource | None,
    *,
    has_loss: bool,
    label: str,
) -> None:
    """Refuse, before the first update, a training that cannot work."""
    if not examples:
        raise UserError("there is nothing to learn: no row has an answer", where=label)
    soft = any(not isinstance(term, Hard) for term in terms)
    if soft and target_source is None and not has_loss:
        raise UserError(
            "a soft term needs a teacher's signals", where=label, fix="targets: data/capture/…"
        )
    if model.can_generate():  # a classifier's head is a part of its own forward pass
        check_head(model)
    if torch.cuda.is_available():
        return  # a GPU refuses by itself, at once
    longest = max(_length(model, example) for example in examples)
    teachers = target_source.live_models if target_source else []
    check_training_memory(
        model, hyperparameters, longest, teachers, where=label, workers=processes.world_size()
    )


def _length(model: PreTrainedModel, example: Example) -> int:
    """Return the tokens of a row, those of its pictures included."""
    return len(example.ids) + seeing.image_tokens(model, example.images)


def _plan_data(
    examples: Sequence[Example],
    hyperparameters: Hyperparameters,
    seed: int,
    target_source: TargetCollator | None,
) -> tuple[MicroBatches, list[int]]:
    """Return this worker's micro-batches of all updates, and the updates' curriculum stages."""
    batches = plan_batches(examples, hyperparameters, seed)
    shards = [processes.shard(batch) for batch in batches]
    data = MicroBatches(examples, shards, hyperparameters.rows_at_once, target_source)
    # an update has rows of one stage alone
    return data, [examples[batch[0]].stage for batch in batches]


def _checkpoint_dir(
    hyperparameters: Hyperparameters, examples: Sequence[Example], updates: int
) -> CheckpointDir | None:
    run, every = checkpointing.current_run(), hyperparameters.checkpoint_every
    # a run that ends before the first checkpoint is due keeps none
    if run is None or not 0 < every <= updates:
        return None
    return run.checkpoint_dir(every, fingerprint(examples))
