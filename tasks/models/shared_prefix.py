"""Rows that begin alike, as under one system prompt: what they share is computed once a batch.

Under a causal mask the first tokens of a row know nothing of those behind them, so what a model
makes of a common beginning is the same in every row, and its gradient is the sum of theirs (the
same thought for groups of rollouts: Liu et al. 2025, Prefix Grouper, arXiv 2506.05433).
Of a chat template's rows with a short question more than half is such a beginning.

Shapes: B batch, S sequence, P shared tokens, D width.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

WORTH = {"cpu": 64}
"""Tokens that must be saved: what a second pass costs beside its arithmetic."""
_WORTH_ELSEWHERE = 4096
"""On a GPU, which also waits for a second pass to be launched: an estimate, not measured."""


def last_hidden(model: PreTrainedModel, ids_BS: Tensor) -> Tensor:
    """Return what a causal LM's head reads of right-padded rows, (B, S, D).

    The numbers are those of a pass over all rows, up to rounding.
    """
    shared = _shared(ids_BS)
    saved = shared * (len(ids_BS) - 1)
    if saved < WORTH.get(ids_BS.device.type, _WORTH_ELSEWHERE) or not _can_share(model):
        hidden_BSD: Tensor = model.get_decoder()(ids_BS, use_cache=False).last_hidden_state
        return hidden_BSD
    cache = DynamicCache(config=model.config)
    once_PD = _read(model, ids_BS[:1, :shared], cache)[0]
    for layer in cache.layers:
        layer.keys = layer.keys.expand(len(ids_BS), -1, -1, -1)
        layer.values = layer.values.expand(len(ids_BS), -1, -1, -1)
    rest_BSD = _read(model, ids_BS[:, shared:], cache)
    return torch.cat([once_PD.expand(len(ids_BS), -1, -1), rest_BSD], 1)


def _read(model: PreTrainedModel, ids_BS: Tensor, cache: DynamicCache) -> Tensor:
    out = model.get_decoder()(ids_BS, past_key_values=cache, use_cache=True)
    hidden_BSD: Tensor = out.last_hidden_state
    return hidden_BSD


def _shared(ids_BS: Tensor) -> int:
    """Return how many first tokens all rows have in common, the last column apart."""
    alike_S = (ids_BS[:, :-1] == ids_BS[:1, :-1]).all(0)
    return int(alike_S.long().cumprod(0).sum())


def _can_share(model: PreTrainedModel) -> bool:
    """Say whether every layer keeps the keys and values of all tokens, and no chance is at play.

    Dropout draws anew for each row, and recomputing activations rules a cache out.
    """
    recomputes = getattr(model.get_decoder(), "gradient_checkpointing", False)
    if model.training and (recomputes or _drops(model)):
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _drops(model: PreTrainedModel) -> bool:
    rates = model.config.get_text_config().to_dict().items()
    elsewhere = ("summary", "classifier")  # heads of other tasks
    said = [p for name, p in rates if "drop" in name and not name.startswith(elsewhere)]
    built = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return any(p for p in [*said, *built] if isinstance(p, float))
