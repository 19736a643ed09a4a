"""Layer dropping: a model keeps some of its transformer blocks."""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.layers import blocks_of, body_of, has_blocks


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of transformer blocks, by whichever name the architecture has it.

    Raises:
        UserError: the model is not one stack of blocks.
    """
    depth = model.config.get_text_config().num_hidden_layers
    for module in body_of(model).children():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    # an encoder's blocks are one module deeper
    if not model.can_generate() and has_blocks(model) and len(blocks_of(model)) == depth:
        return blocks_of(model)
    raise UserError(
        f"{type(model).__name__} is not one stack of {depth} layers",
        where="params.yaml, section init_student",
    )


def keep_layers(model: PreTrainedModel, positions: Sequence[int]) -> None:
    """Keep the blocks at `positions`, in that order, and fix the configuration."""
    stack, config = layer_stack(model), model.config.get_text_config()
    depth = len(stack)
    kept = [stack[n] for n in positions]
    # the same list object: the model keeps its reference
    del stack[:]
    stack.extend(kept)
    for index, block in enumerate(kept):
        for module in block.modules():
            for name in ("layer_idx", "layer_id"):  # its place in the cache of keys and values
                if hasattr(module, name):
                    vars(module)[name] = index
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == depth:  # one entry a layer: layer_types ...
            setattr(config, name, [value[n] for n in positions])
    if hasattr(config, "attention_types"):  # GPT-Neo spells its list of layers so too
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    config.num_hidden_layers = len(kept)
