"""The signal store: a teacher's distributions on disk, how they are captured, packed and read."""

from cohobate.lazy_names import attach

_NAMES = {
    "capture": ["capture_signals"],
    "form": ["SignalForm", "Signals"],
    "forms": ["Form", "StoredTopK", "StoredDraws", "StoredHidden"],
    "settings": ["CaptureParams"],
    "store": ["SignalStore", "Origin"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
