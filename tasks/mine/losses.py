"""How hard a model finds given answers, row by row.

Shapes: N answer tokens, D width.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tasks.batches import examples_of
from tasks.divergences import Hard
from tasks.fused_head import fused_head_loss
from tasks.heads import Head
from tasks.progress import track
from tasks.records import Row
from tasks.targets import Targets
from tasks.text import encode_all, pad_right

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def mean_losses(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    *,
    batch_tokens: int,
    threads: int,
) -> list[float]:
    """Return the mean of −log q over each row's answer and its end, in nats a token.

    Every row must have an answer. Right padding under a causal mask: what is read never attends
    to padding.
    """
    torch.set_num_threads(threads)
    head = Head.of(model, len(tokenizer))
    examples = examples_of(rows, encode_all(tokenizer, rows))
    order = sorted(range(len(rows)), key=lambda n: -len(examples[n].ids))
    size = max(1, batch_tokens // len(examples[order[0]].ids))
    found = [0.0] * len(rows)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    for batch in track(batches, total=len(batches), what="reading"):
        some = [examples[n] for n in batch]
        ids_BS = pad_right([row.ids[:-1].tolist() for row in some], 0).to(model.device)
        hidden_BSD = model.get_decoder()(input_ids=ids_BS, use_cache=False).last_hidden_state
        for n, row, hidden_SD in zip(batch, some, hidden_BSD, strict=True):
            hidden_ND = hidden_SD[row.prompt_length - 1 : len(row.ids) - 1]
            ids_N = torch.from_numpy(row.ids[row.prompt_length :].astype(np.int64))
            targets = Targets(ids_N.to(model.device))
            loss, _ = fused_head_loss(hidden_ND, head, [Hard()], targets, divisor=row.length)
            found[n] = float(loss)
    return found
