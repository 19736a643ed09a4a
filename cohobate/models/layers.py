"""The body of a causal language model: what lies below its head, its blocks, their heads."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from cohobate.errors import UserError


def body_of(model: Any) -> Any:
    """Return the module whose last hidden state the head reads."""
    if not model.can_generate():  # an encoder's `decoder` is the matrix of its head (ModernBERT)
        return model.base_model
    decoder = model.get_decoder()
    if decoder is not model:
        return decoder
    # transformers returns the model itself where its prefix of weights names no module (Llama 4)
    return getattr(model, "model", model)


def learned_positions(model: Any) -> int | None:
    """Return the size of a model's table of learnt position embeddings (GPT-2, OPT), or None.

    Models without one read rows beyond their context, only worse; these cannot.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    words = model.get_input_embeddings()
    tables = [m for m in body_of(model).modules() if isinstance(m, nn.Embedding) and m is not words]
    ahead = (0, 2)  # OPT keeps two rows for itself
    is_learned = context and any(table.num_embeddings - context in ahead for table in tables)
    return int(context or 0) if is_learned else None


def check_positions(model: Any, width: int) -> None:
    """Refuse rows that are longer than the positions which a model has learnt.

    Raises:
        UserError: says how long rows may be.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context and width > context and learned_positions(model):
        raise UserError(
            f"a row has {width} tokens, {type(model).__name__} has positions for {context}",
            where="rows with their answers",
            fix=f"max_tokens: {context} in adapt and in train; or leave longer rows out",
        )


def shared_names(config: Any) -> dict[str, Any]:
    """Return a configuration under the names that all architectures share.

    `hidden_size` is there too where the architecture itself says `n_embd`.
    """
    shared = {name: getattr(config, name, None) for name in config.attribute_map}
    return dict(config.to_dict()) | shared


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of blocks of a causal LM or of a classifier.

    Raises:
        UserError: there is more than one such stack, or none.
    """
    if not has_blocks(model):
        raise UserError(f"cannot tell which modules of {type(model).__name__} are its blocks")
    return _stacks(model)[0]


def has_blocks(model: PreTrainedModel) -> bool:
    """Say whether a causal LM is one stack of blocks."""
    return len(_stacks(model)) == 1


def _stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    stacks = [m for m in body_of(model).children() if isinstance(m, nn.ModuleList)]
    if stacks or model.can_generate():
        return stacks
    # encoders hold their blocks one module deeper: bert.encoder.layer
    parts = [part for child in body_of(model).children() for part in child.children()]
    return [part for part in parts if isinstance(part, nn.ModuleList)]


def heads_of(model: PreTrainedModel) -> int:
    """Return the number of heads of keys and values."""
    config = model.config.get_text_config()
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
