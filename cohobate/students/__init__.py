"""Initial students: layers and widths cut from a teacher, trimmed vocabularies, random weights."""

from cohobate.lazy_names import attach

_NAMES = {
    "importance": ["Importance", "measure_importance"],
    "initialization": ["Pretrained", "RandomWeights", "StudentInit"],
    "layer_cutting": ["keep_layers"],
    "random_weights": ["random_model"],
    "rank_cutting": ["keep_rank"],
    "teacher_layers": ["TeacherLayers"],
    "vocabulary_trimming": ["trim"],
    "width_cutting": ["keep_widths"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
