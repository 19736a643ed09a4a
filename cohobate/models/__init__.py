"""Language models: where they come from, checkpoints, their parts, heads and vocabularies."""

from importlib import import_module
from typing import Any

_MODULE_OF = {
    "Head": "lm_head",
    "ModelInfo": "model_info",
    "TemplateSettings": "chat_templates",
    "load": "checkpoints",
    "load_tokenizer": "checkpoints",
    "read_model_info": "model_info",
    "resolve": "hub",
    "save": "checkpoints",
    "vocabulary_hash": "vocabularies",
}
__all__ = [
    "Head",
    "ModelInfo",
    "TemplateSettings",
    "load",
    "load_tokenizer",
    "read_model_info",
    "resolve",
    "save",
    "vocabulary_hash",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: importing the package imports nothing heavy."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
