"""Training of causal language models: `fit`, its hyperparameters, and what they consist of."""

from importlib import import_module
from typing import Any

_MODULES = {
    "Adapter": "adapters",
    "CausalLMLoss": "model_loss",
    "CheckpointDir": "checkpointing",
    "Freeze": "hyperparameters",
    "FusedTrainer": "fused_trainer",
    "Hyperparameters": "hyperparameters",
    "Lora": "adapters",
    "MicroBatches": "batches",
    "ModelLoss": "model_loss",
    "Rollouts": "fused_trainer",
    "Update": "history",
    "fit": "trainer",
    "peak_memory": "memory",
    "plan_batches": "batches",
    "resumable": "checkpointing",
    "write_history": "history",
}
"""Public names, and the module of each: it is imported when the name is first used."""

__all__ = [
    "Adapter",
    "CausalLMLoss",
    "CheckpointDir",
    "Freeze",
    "FusedTrainer",
    "Hyperparameters",
    "Lora",
    "MicroBatches",
    "ModelLoss",
    "Rollouts",
    "Update",
    "fit",
    "peak_memory",
    "plan_batches",
    "resumable",
    "write_history",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
