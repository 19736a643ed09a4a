"""Training of causal language models: `fit`, its hyperparameters, and what they consist of."""

from cohobate.lazy_names import attach

_NAMES = {
    "adapters": ["Adapter", "Lora"],
    "batches": ["MicroBatches", "plan_batches"],
    "checkpointing": ["CheckpointDir", "resumable"],
    "dev_checks": ["DevChecks", "DevScorer", "DevTracker", "checked"],
    "fused_trainer": ["FusedTrainer", "Rollouts"],
    "history": ["Update", "write_history"],
    "hyperparameters": ["Freeze", "Hyperparameters"],
    "memory": ["peak_memory"],
    "model_loss": ["CausalLMLoss", "ModelLoss"],
    "trainer": ["fit"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
