"""Chat templates that TRL knows: it has training templates and response templates for them."""

import copy
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@lru_cache(8)
def without_settings(chat_template: str) -> str:
    """Return the template of TRL's list with which a chat template ends, or the template itself.

    Settings of this project stand before a template's own text (cohobate/models/chat_templates.py),
    and TRL compares whole texts.
    """
    from trl import chat_template_utils

    templates = vars(chat_template_utils).items()
    texts = [text for name, text in templates if name.endswith("_chat_template")]
    known = [text for text in texts if isinstance(text, str) and text]
    ends = [text for text in known if chat_template.endswith(text)]
    return max(ends, key=len, default=chat_template)


def training_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Return TRL's training template for the tokenizer's, with its settings; None without one.

    Raises:
        ValueError: TRL does not know the template.
    """
    # imported where it is needed: it takes seconds
    from trl.chat_template_utils import get_training_chat_template

    template = tokenizer.chat_template
    template = template["default"] if isinstance(template, dict) else str(template)
    own = without_settings(template)
    bare = copy.copy(tokenizer)
    bare.chat_template = own
    training: str | None = get_training_chat_template(bare)
    return template.removesuffix(own) + training if training else None
