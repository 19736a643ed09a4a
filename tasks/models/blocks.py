"""The stack of blocks of a causal language model, and their heads."""

from torch import nn
from transformers import PreTrainedModel

from tasks.errors import UserError


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return the stack of blocks of a causal LM.

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
    return [m for m in model.get_decoder().children() if isinstance(m, nn.ModuleList)]


def heads_of(model: PreTrainedModel) -> int:
    """Return the number of heads of keys and values."""
    config = model.config.get_text_config()
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
