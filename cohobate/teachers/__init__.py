"""Teachers, and sources of a student's soft targets: live, stored, ensembles, other tokenizers."""

from cohobate.lazy_names import attach

_NAMES = {
    "cross_tokenizer": ["CrossTokenizerSource"],
    "ensembles": ["Ensemble", "Mixture", "MeanLogits", "Route", "Best", "Progressive"],
    "micro_batch": ["MicroBatch"],
    "target_sources": ["TargetSource", "LiveSource", "StoredSource", "map_vocabulary"],
    "teacher": ["Teacher", "Teachers"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
