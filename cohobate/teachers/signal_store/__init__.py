"""The signal store: a teacher's distributions on disk, how they are captured, packed and read."""

from cohobate.lazy_names import attach

_NAMES = {
    "capture": ["capture_signals"],
    "form": ["SignalForm", "Signals"],
    "forms": ["Form", "StoredDraws", "StoredHidden"],
    "settings": ["CaptureParams"],
    "store": ["SignalStore", "Origin"],
    "top_k_form": ["StoredTopK"],
    "writing": ["write_store"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
