"""Decoding on local models, and the likelihood of given texts."""

from cohobate.lazy_names import attach

_NAMES = {
    "decoding": ["decode_batch", "generate_answers", "plan_batches", "stop_ids"],
    "likelihood": ["Likelihood"],
    "requests": ["Answer", "Batching", "Completion", "Decoding", "Request"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
