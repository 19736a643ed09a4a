"""Losses of distillation: divergences and feature losses, soft targets, and the fused LM head.

from cohobate.losses import ForwardKL, Hard, LiveTeacher, Targets, fused_head_loss

terms = [ForwardKL(weight=0.9, temperature=2.0), Hard(weight=0.1)]
targets = Targets(labels_N, LiveTeacher(teacher_hidden_ND, teacher_head))
loss, losses_NF = fused_head_loss(hidden_ND, head, terms, targets, divisor=len(labels_N))
"""

from importlib import import_module
from typing import Any

# public name -> module of this package; loaded when the name is first used, so that importing the
# package stays light
_MODULES = {
    "Divergence": "divergence",
    "ForwardKL": "divergences",
    "ReverseKL": "divergences",
    "JensenShannon": "divergences",
    "SkewForwardKL": "divergences",
    "SkewReverseKL": "divergences",
    "AdaptiveKL": "divergences",
    "TotalVariation": "divergences",
    "LogitMse": "divergences",
    "Hard": "divergences",
    "Term": "divergences",
    "DistiLLM2": "distillm2",
    "Uld": "uld",
    "Feature": "features",
    "HiddenMse": "features",
    "HiddenCosine": "features",
    "Attention": "features",
    "ValueRelation": "features",
    "RelationalDistance": "features",
    "SimilarityPreserving": "features",
    "TokenPositions": "features",
    "FeatureTerm": "features",
    "LayerMatching": "layer_matching",
    "SoftTargets": "soft_targets",
    "ResponseTerm": "soft_targets",
    "LiveTeacher": "live_teacher",
    "LiveEnsemble": "live_teacher",
    "TopK": "top_k",
    "StoredEnsemble": "top_k",
    "SampledIds": "sampled_ids",
    "CrossTokenizerTargets": "cross_tokenizer_targets",
    "Targets": "targets",
    "fused_head_loss": "fused_head",
}
__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
