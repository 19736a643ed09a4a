"""Training methods: a phase's params and its training, one module for each method."""

from importlib import import_module
from typing import Any

_MODULES = {
    "Dpo": "dpo",
    "Kd": "kd",
    "Method": "train",
    "Mutual": "mutual",
    "NoTuning": "teacher_tuning",
    "OnPolicy": "on_policy",
    "Phase": "phase",
    "PhaseResult": "phase",
    "PreferenceLoss": "preference_loss",
    "Sampling": "rollout_settings",
    "Sft": "sft",
    "SftTuning": "teacher_tuning",
    "StudentRollouts": "rollouts",
    "train_seeds": "train",
}
"""Public names, and the module of each: it is imported when the name is first used."""

__all__ = [
    "Dpo",
    "Kd",
    "Method",
    "Mutual",
    "NoTuning",
    "OnPolicy",
    "Phase",
    "PhaseResult",
    "PreferenceLoss",
    "Sampling",
    "Sft",
    "SftTuning",
    "StudentRollouts",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
