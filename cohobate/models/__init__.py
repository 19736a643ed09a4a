"""Language models: where they come from, checkpoints, their parts, heads and vocabularies."""

from cohobate.lazy_names import attach

_NAMES = {
    "chat_templates": ["TemplateSettings"],
    "checkpoints": ["load", "load_tokenizer", "save"],
    "hub": ["resolve"],
    "lm_head": ["Head"],
    "model_info": ["ModelInfo", "read_model_info"],
    "vocabularies": ["vocabulary_hash"],
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
