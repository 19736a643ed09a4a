"""Losses of distillation: divergences and feature losses, soft targets, and the fused LM head.

from cohobate.losses import ForwardKL, Hard, LiveTeacher, Targets, fused_head_loss

terms = [ForwardKL(weight=0.9, temperature=2.0), Hard(weight=0.1)]
targets = Targets(labels_N, LiveTeacher(teacher_hidden_ND, teacher_head))
loss, losses_NF = fused_head_loss(hidden_ND, head, terms, targets, divisor=len(labels_N))
"""

from cohobate.lazy_names import attach

_NAMES = {
    "base_divergence": ["Divergence"],
    "cross_tokenizer_targets": ["CrossTokenizerTargets"],
    "distillm2": ["DistiLLM2"],
    "divergences": [
        "ForwardKL",
        "ReverseKL",
        "JensenShannon",
        "SkewForwardKL",
        "SkewReverseKL",
        "AdaptiveKL",
        "TotalVariation",
        "LogitMse",
        "Hard",
        "Term",
    ],
    "feature_losses": [
        "Feature",
        "HiddenMse",
        "HiddenCosine",
        "Attention",
        "ValueRelation",
        "RelationalDistance",
        "SimilarityPreserving",
        "TokenPositions",
        "FeatureTerm",
    ],
    "fused_head": ["fused_head_loss"],
    "layer_matching": ["LayerMatching"],
    "live_teacher": ["LiveTeacher", "LiveEnsemble"],
    "sampled_ids": ["SampledIds"],
    "soft_targets": ["SoftTargets", "ResponseTerm"],
    "targets": ["Targets"],
    "top_k": ["TopK", "StoredEnsemble"],
    "uld": ["Uld"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
