"""transformers' TrainingArguments, from this project's hyperparameters."""

import math

import torch
from transformers import TrainingArguments

from cohobate import processes
from cohobate.training.hyperparameters import Hyperparameters

_OPTIMISERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_torch_8bit",
    "adamw_offloaded": "adamw_torch",  # not used: Trainer gets the class
}
"""What transformers calls them, where it has another name."""


def training_arguments(
    hyperparameters: Hyperparameters, updates: int, seed: int, scratch: str
) -> TrainingArguments:
    """Return transformers' arguments for one worker's training.

    Args:
        hyperparameters: of the training.
        updates: optimizer steps of the whole run.
        seed: of dropout.
        scratch: an empty folder; Trainer asks for one, and nothing is written there.
    """
    on_gpu = torch.cuda.is_available()
    # rows of an update that this worker reads, and of them the rows of one forward pass
    share = hyperparameters.batch_size // processes.world_size()
    at_once = min(hyperparameters.rows_at_once, share)
    return TrainingArguments(
        output_dir=scratch,
        use_cpu=not on_gpu,
        bf16=hyperparameters.number_format == "bfloat16",
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=math.ceil(share / at_once),
        max_steps=updates,
        learning_rate=hyperparameters.learning_rate,
        # transformers' `constant` ignores the warmup
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(
            hyperparameters.schedule, hyperparameters.schedule
        ),
        warmup_steps=round(hyperparameters.warmup * updates),
        weight_decay=hyperparameters.weight_decay,
        adam_beta1=hyperparameters.betas[0],
        adam_beta2=hyperparameters.betas[1],
        max_grad_norm=hyperparameters.clip,
        optim=_OPTIMISERS.get(hyperparameters.optimiser, hyperparameters.optimiser),
        seed=seed,
        report_to="none",
        logging_strategy="no",
        # FusedTrainer stops at a loss that is not finite, and CheckpointCallback saves
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        log_level="error",
        # a batch has the arguments of the loss, which Trainer does not find in the model
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        # every trained weight is used in each pass: the search would only cost time
        ddp_find_unused_parameters=False,
    )
