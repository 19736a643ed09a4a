"""Low-rank students: a model's hidden states keep their principal directions alone.

All blocks read and write one hidden state, of width D. On calibration rows most of its power lies
in few directions. Let Q (D × O) be the O principal ones. A linear layer W that reads the hidden
state becomes its low-rank form W Q Qᵀ, one that writes it Q Qᵀ W. The second factor of one layer
and the first of the next cancel (Qᵀ Q = 1), so that W Q and Qᵀ W are stored: a model of the same
kind with a smaller `hidden_size`, which transformers opens as it is. This is PCA of activations
(Ashkboos et al. 2024, "SliceGPT", section 3) with one rotation for all blocks, so that no matrix is
needed between them. Sizes of heads and MLP stay.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models.layers import body_of
from cohobate.students.importance import calibration_batches, projections
from cohobate.students.layer_cutting import layer_stack
from cohobate.students.principal_directions import covariance, last_block, principal

_READERS = {
    "input_layernorm": ("q_proj", "k_proj", "v_proj"),
    "post_attention_layernorm": ("gate_proj", "up_proj"),
}
"""The linear layers that read what each norm of a block gives."""
_WRITERS = ("o_proj", "down_proj")
_TOLERANCE = 1e-3


@torch.no_grad()
def keep_rank(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    rank: int,
) -> float:
    """Keep the principal directions of a model's hidden states on rows, in place.

    Args:
        model: in float32.
        tokenizer: the model's.
        rows: calibration rows, prompts with their answers.
        rank: directions to keep.

    Returns:
        The share of the hidden states' power that lies in these directions.

    Raises:
        UserError: the model is not made of RMS norms and blocks as Llama's, or `rank` is too large.
    """
    _check(model, rank)
    torch.set_num_threads(1)  # sums of one order: the same rows always give the same directions
    batches = calibration_batches(tokenizer, rows)
    power_D, basis_DD = principal(covariance(model, _norms(model), batches))
    sample_BS = batches[-1][0]
    before_BSD = last_block(model, sample_BS)
    _absorb_norms(model)
    _rotate(model, basis_DD)
    expected_BSD = before_BSD @ basis_DD.float()
    error = float((last_block(model, sample_BS) - expected_BSD).norm() / expected_BSD.norm())
    # whatever else an architecture does with its hidden states (scales, norms) shows here
    if not error < _TOLERANCE:
        raise _other_kind(model)
    cut_hidden_size(model, rank)
    return float(power_D[:rank].sum() / power_D.sum())


def cut_hidden_size(model: PreTrainedModel, rank: int) -> None:
    """Keep the first `rank` entries of the hidden state: only sizes count for a meta model.

    Raises:
        UserError: as `keep_rank`.
    """
    _check(model, rank)
    config = model.config.get_text_config()
    # a norm divides by the root mean square, which is larger over the strongest entries alone
    scale = (config.hidden_size / rank) ** 0.5
    config.head_dim = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embeddings.weight
    _narrow(embeddings, rank, 1)
    embeddings.embedding_dim = rank
    if tied:
        head.weight = embeddings.weight
    else:
        _narrow(head, rank, 1)
    head.in_features = rank
    for norm in _norms(model):
        norm.weight = nn.Parameter(norm.weight.detach()[:rank] * scale)
    for block in layer_stack(model):
        for name, module in _linears(block):
            dim = 0 if name in _WRITERS else 1
            _narrow(module, rank, dim)
            module.out_features, module.in_features = module.weight.shape
        for module in block.modules():
            if hasattr(module, "hidden_size"):
                vars(module)["hidden_size"] = rank
    config.hidden_size = rank


def _check(model: PreTrainedModel, rank: int) -> None:
    config, block = model.config.get_text_config(), layer_stack(model)[0]
    projections(block)  # refuses blocks without attention and gated MLP
    width, heads = config.hidden_size, config.num_attention_heads
    inner = {name for name, module in block.named_modules() if _is_norm(module, width)}
    if inner != set(_READERS) or not _is_norm(getattr(body_of(model), "norm", None), width):
        raise _other_kind(model)
    if rank > width or rank % heads:
        nearest = min(width, max(heads, round(rank / heads) * heads))
        raise UserError(
            f"a hidden size of {rank} does not fit: the teacher's is {width}, and transformers "
            f"wants a multiple of its {heads} heads",
            where="params.yaml, init_student.rank",
            fix=f"cohobate run --set init_student.rank={nearest}",
        )


def _other_kind(model: PreTrainedModel) -> UserError:
    return UserError(
        f"the hidden states of {type(model).__name__} cannot be rotated: it is not made of two RMS "
        "norms a block, attention and a gated MLP, as Llama is",
        where="params.yaml, init_student.rank",
        fix="cut by layers, or by init_student.width",
    )


def _is_norm(module: Any, width: int) -> bool:
    """Say whether a module is an RMS norm of the hidden state: a weight and no bias."""
    weight = getattr(module, "weight", None)
    linear = isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm)
    return bool(weight is not None and weight.shape == (width,) and not linear)


def _norms(model: PreTrainedModel) -> list[Any]:
    """Return the norms of all blocks, and the one behind the last block."""
    blocks = layer_stack(model)
    return [*(getattr(b, name) for b in blocks for name in _READERS), body_of(model).norm]


def _linears(block: nn.Module, names: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers of a block that read or write the hidden state, by their names."""
    wanted = names or [*_WRITERS, *(name for readers in _READERS.values() for name in readers)]
    for path, module in block.named_modules():
        name = path.split(".")[-1]
        if name in wanted and isinstance(module, nn.Linear):
            yield name, module


def _narrow(module: Any, size: int, dim: int) -> None:
    """Keep the first rows (0) or columns (1) of a weight, and of its bias."""
    module.weight = nn.Parameter(module.weight.detach().narrow(dim, 0, size).contiguous())
    if dim == 0 and module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[:size].contiguous())


def _absorb_norms(model: PreTrainedModel) -> None:
    """Move the weight of each norm into the linear layers that read it, so that it can be rotated.

    The last norm keeps its weight where the head is tied to the embeddings.
    """
    for block in layer_stack(model):
        for name, names in _READERS.items():
            _absorb(getattr(block, name), [module for _, module in _linears(block, names)])
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        _absorb(body_of(model).norm, [head])


def _absorb(norm: Any, readers: Sequence[Any]) -> None:
    for module in readers:
        module.weight.mul_(norm.weight)
    norm.weight.fill_(1)


def _rotate(model: PreTrainedModel, basis_DD: Tensor) -> None:
    """Write a model for hidden states h Q in place of h; the norms have no weights."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    embeddings.weight.copy_(embeddings.weight.double() @ basis_DD)
    if head.weight is not embeddings.weight:
        head.weight.copy_(head.weight.double() @ basis_DD)
    else:
        # Qᵀ diag(w) Q is no diagonal matrix: its diagonal is the nearest one, as the entries of
        # h Q are uncorrelated
        norm = body_of(model).norm
        norm.weight.copy_(basis_DD.square().T @ norm.weight.double())
    for block in layer_stack(model):
        for name, module in _linears(block):
            weight_OI = module.weight.double()
            writes = name in _WRITERS
            module.weight.copy_(basis_DD.T @ weight_OI if writes else weight_OI @ basis_DD)
            if writes and module.bias is not None:
                module.bias.copy_(basis_DD.T @ module.bias.double())
