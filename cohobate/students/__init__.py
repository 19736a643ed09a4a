"""Initial students: layers and widths cut from a teacher, trimmed vocabularies, random weights."""

from importlib import import_module
from typing import Any

_MODULES = {
    "Importance": "importance",
    "Pretrained": "initialization",
    "RandomWeights": "initialization",
    "StudentInit": "initialization",
    "TeacherLayers": "initialization",
    "keep_layers": "layer_cutting",
    "keep_widths": "width_cutting",
    "measure_importance": "importance",
    "random_model": "from_config",
    "trim": "vocabulary_trimming",
}
"""Public names, and the module of each: it is imported when the name is first used."""

__all__ = [
    "Importance",
    "Pretrained",
    "RandomWeights",
    "StudentInit",
    "TeacherLayers",
    "keep_layers",
    "keep_widths",
    "measure_importance",
    "random_model",
    "trim",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
