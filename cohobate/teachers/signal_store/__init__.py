"""The signal store: a teacher's distributions on disk, how they are captured, packed and read."""

from importlib import import_module
from typing import Any

# public name -> module of this package; loaded when the name is first used, so that importing the
# package stays light
_MODULES = {
    "capture_signals": "capture",
    "CaptureParams": "settings",
    "SignalStore": "store",
    "Origin": "store",
    "SignalForm": "form",
    "Signals": "form",
    "Form": "forms",
    "StoredTopK": "forms",
    "StoredDraws": "forms",
    "StoredHidden": "forms",
}
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
