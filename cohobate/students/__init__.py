"""Initial students: layers and widths cut from a teacher, trimmed vocabularies, random weights."""

from cohobate.lazy_names import attach

_NAMES = {
    "from_config": ["random_model"],
    "importance": ["Importance", "measure_importance"],
    "initialization": ["Pretrained", "RandomWeights", "StudentInit", "TeacherLayers"],
    "layer_cutting": ["keep_layers"],
    "vocabulary_trimming": ["trim"],
    "width_cutting": ["keep_widths"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
