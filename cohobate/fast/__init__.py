"""Fast paths, most of them for a CPU, each beside a plain one that gives the same numbers.

`forward` is the entry point. benchmarks/fast_paths.py measures what each path gains;
`COHOBATE_FAST=off` takes the plain ones.
"""

from cohobate.lazy_names import attach

_NAMES = {
    "forward_pass": ["ForwardOutputs", "forward", "has_row_attention"],
    "frozen": ["load_frozen"],
    "prefix_cache": ["PrefixCache"],
    "sparse_embedding_gradient": ["sparse_gradient"],
    "switch": ["enabled"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
