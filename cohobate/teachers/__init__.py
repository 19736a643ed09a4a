"""Teachers, and sources of a student's soft targets: live, stored, ensembles, other tokenizers."""

from importlib import import_module
from typing import Any

# public name -> module of this package; loaded when the name is first used, so that importing the
# package stays light
_MODULES = {
    "Teacher": "teacher",
    "Teachers": "teacher",
    "TargetSource": "target_sources",
    "LiveSource": "target_sources",
    "StoredSource": "target_sources",
    "map_vocabulary": "target_sources",
    "CrossTokenizerSource": "cross_tokenizer",
    "MicroBatch": "micro_batch",
    "Ensemble": "ensembles",
    "Mixture": "ensembles",
    "MeanLogits": "ensembles",
    "Route": "ensembles",
    "Best": "ensembles",
    "Progressive": "ensembles",
}
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
