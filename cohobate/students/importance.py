"""Importance of a model's layers, groups of heads and MLP neurons on calibration rows.

The importance of a layer is 1 − the cosine of its input and output, the mean over tokens (block
influence; Men et al. 2024, "ShortGPT", section 2.3). That of a group of heads and of a neuron is
the L2 norm over tokens of its activations, where they enter the next projection (Muralidharan et
al. 2024, "Minitron", section 2.2).
"""

# ruff: noqa: N815 (fields that are tensors carry shape suffixes too)

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cohobate.data.records import Row, row_kind
from cohobate.data.row_files import RowView
from cohobate.data.tokenized import encode_all, pad_right
from cohobate.errors import UserError
from cohobate.models.layers import body_of, heads_of
from cohobate.progress import track
from cohobate.students.layer_cutting import layer_stack

_BATCH = 16


class Importance(NamedTuple):
    """Importance of the parts of a model, in no unit."""

    layers_L: Tensor
    groups_LG: Tensor
    neurons_LI: Tensor


def projections(block: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """Return the linear layers that the heads and the neurons of a block feed into.

    Raises:
        UserError: the block is not made of attention and a gated MLP as Llama's is.
    """
    linear = [(n.split(".")[-1], m) for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    by_name: dict[str, Any] = dict(linear)
    names = [name for name, _ in linear]
    needed = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    if any(names.count(name) != 1 for name in needed):  # experts have several
        raise UserError(
            f"{type(block).__name__} has no attention and gated MLP as Llama's",
            where="params.yaml, section init_student.width",
            fix="cut by layers alone",
        )
    return by_name["o_proj"], by_name["down_proj"]


def calibration_rows(path: Path, count: int) -> list[Row]:
    """Return `count` rows at most, evenly spaced over a file."""
    view = RowView.of([path], row_kind(path))
    step = max(1, len(view) // count)
    return list(view.only(range(0, min(len(view), step * count), step)))


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> list[tuple[Tensor, Tensor]]:
    """Return rows, prompts with their answers, as ids (B, S), and which of them are real (B, S)."""
    # by length: little padding in a batch
    ids = sorted((row.ids for row in encode_all(tokenizer, rows)), key=len)
    batches = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        ids_BS, lengths = pad_right(batch, 0), torch.tensor([len(row) for row in batch])
        batches.append((ids_BS, torch.arange(ids_BS.shape[1]) < lengths[:, None]))
    return batches


@torch.inference_mode()
def measure_importance(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], widths: bool
) -> Importance:
    """Return the importance of a model's parts on rows, prompts with their answers.

    Without `widths` the importance of layers alone is measured.
    """
    torch.set_num_threads(1)  # sums of one order: the same rows always choose the same parts
    blocks = layer_stack(model)
    depth = len(blocks)
    groups = heads_of(model) if widths else 0
    neurons = projections(blocks[0])[1].in_features if widths else 0
    layers_L = torch.zeros(depth, dtype=torch.float64)
    groups_LG = torch.zeros(depth, groups, dtype=torch.float64)
    neurons_LI = torch.zeros(depth, neurons, dtype=torch.float64)
    batches = calibration_batches(tokenizer, rows)
    label = "importance of the teacher's layers"
    for ids_BS, real_BS in track(batches, total=len(batches), label=label):
        with _recorded(blocks, widths) as activations:
            body_of(model)(input_ids=ids_BS, use_cache=False)
        for number, (before, after, heads, inner) in enumerate(activations):
            influence_N = 1 - torch.cosine_similarity(before[real_BS], after[real_BS], dim=-1)
            layers_L[number] += influence_N.sum(dtype=torch.float64)
            if widths:
                # sums over tokens in float64: tens of thousands of squares
                power_ND = heads[real_BS].double().square()
                # (N, heads · E) to (N, groups, what a group has), summed over tokens and the last
                groups_LG[number] += power_ND.unflatten(-1, (groups, -1)).sum((0, 2))
                neurons_LI[number] += inner[real_BS].double().square().sum(0)
    total = sum(int(real_BS.sum()) for _, real_BS in batches)
    return Importance(layers_L / total, groups_LG.sqrt(), neurons_LI.sqrt())


@contextmanager
def _recorded(blocks: nn.ModuleList, widths: bool) -> Iterator[list[list[Any]]]:
    """Yield a list that a forward pass fills: input, output, heads and neurons of each block."""
    activations: list[list[Any]] = [[None] * 4 for _ in blocks]
    with ExitStack() as hooks:
        # `slots` and `place` are defaults of the hooks: a closure would see those of the last block
        for block, slots in zip(blocks, activations, strict=True):

            def both(_: Any, given: Any, named: Any, made: Any, slots: Any = slots) -> None:
                # some architectures pass the hidden states by name
                slots[0] = given[0] if given else named["hidden_states"]
                slots[1] = made[0] if isinstance(made, tuple) else made

            hooks.callback(block.register_forward_hook(both, with_kwargs=True).remove)
            for place, module in enumerate(projections(block) if widths else (), start=2):

                def enters(_: Any, given: Any, slots: Any = slots, place: int = place) -> None:
                    slots[place] = given[0]

                hooks.callback(module.register_forward_pre_hook(enters).remove)
        yield activations
