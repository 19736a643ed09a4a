"""Training methods: a phase's params and its training, one module for each method."""

from cohobate.lazy_names import attach

_NAMES = {
    "dpo": ["Dpo"],
    "early_exit": ["EarlyExit"],
    "kd": ["Kd"],
    "mutual": ["Mutual"],
    "on_policy": ["OnPolicy"],
    "phase": ["Phase", "PhaseResult"],
    "preference_loss": ["PreferenceLoss"],
    "rollout_settings": ["Sampling"],
    "rollouts": ["StudentRollouts"],
    "sft": ["Sft"],
    "teacher_tuning": ["NoTuning", "SftTuning"],
    "train": ["Method", "train_seeds"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
