"""Width pruning: a model keeps some of its attention heads and MLP neurons.

Heads are kept or dropped in whole groups that share keys and values, so that the configuration of
any architecture with grouped queries can describe the result.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.models.layers import heads_of
from cohobate.students.importance import projections
from cohobate.students.layer_cutting import layer_stack


def keep_widths(
    model: PreTrainedModel, groups_LG: Tensor, neurons_LI: Tensor, groups: int, neurons: int
) -> None:
    """Keep in each layer the groups of heads and the neurons that matter most, in their order."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shared = config.num_attention_heads // heads_of(model)
    for number, block in enumerate(layer_stack(model)):
        projections(block)
        kept_groups = _highest(groups_LG[number], groups)
        kept_neurons = _highest(neurons_LI[number], neurons)
        # rows of the projections: a group has one head of keys and `shared` of queries
        keys, queries = (_spread(kept_groups, n) for n in (size, size * shared))
        # which outputs (0) or inputs (1) of each projection stay
        cuts = {"q_proj": (queries, 0), "k_proj": (keys, 0), "v_proj": (keys, 0)}
        cuts |= {"o_proj": (queries, 1), "down_proj": (kept_neurons, 1)}
        cuts |= {"gate_proj": (kept_neurons, 0), "up_proj": (kept_neurons, 0)}
        for name, module in block.named_modules():
            last = name.split(".")[-1]
            if last in cuts and isinstance(module, nn.Linear):
                _cut(module, *cuts[last])
            for attribute, value in (
                ("num_heads", groups * shared),
                ("num_key_value_heads", groups),
            ):
                if hasattr(module, attribute):
                    setattr(module, attribute, value)
    # explicit from now on: hidden size / heads no longer gives it
    config.head_dim = size
    config.num_attention_heads, config.num_key_value_heads = groups * shared, groups
    config.intermediate_size = neurons


def keep_any(model: PreTrainedModel, groups: int, neurons: int) -> None:
    """Keep any `groups` of heads and `neurons` of each layer: only the sizes of the result count.

    Raises:
        UserError: the model has fewer.
    """
    blocks = layer_stack(model)
    available = heads_of(model), projections(blocks[0])[1].in_features
    if groups > available[0] or neurons > available[1]:
        raise UserError(
            f"cannot keep {groups} groups of heads and {neurons} neurons a layer: the teacher has "
            f"{available[0]} and {available[1]}",
            where="params.yaml, section init_student.width",
        )
    groups_LG, neurons_LI = (torch.zeros(len(blocks), count) for count in available)
    keep_widths(model, groups_LG, neurons_LI, groups, neurons)


def _highest(scores: Tensor, count: int) -> Tensor:
    # stable, so that ties go to the first; sorted, so that parts keep their order
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _spread(chosen: Tensor, size: int) -> Tensor:
    # the `size` consecutive places of each chosen group
    return (chosen[:, None] * size + torch.arange(size)).flatten()


def _cut(module: nn.Linear, kept: Tensor, dim: int) -> None:
    kept = kept.to(module.weight.device)
    module.weight = nn.Parameter(module.weight.detach().index_select(dim, kept).contiguous())
    if dim == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[kept].contiguous())
    module.out_features, module.in_features = module.weight.shape
