"""How well a masked model predicts masked tokens of texts that it has not learnt."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from cohobate.data.tokenized import pad_right
from cohobate.generation.encoders import encoder_forward
from cohobate.training.masking import MaskedText, Masker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BATCH = 32
_COPY = -1
"""Of the masks: none that training has."""


def masked_accuracy(
    model: "PreTrainedModel", masker: Masker, texts: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Return the mean loss in nats, and the share of masked tokens that is predicted.

    Args:
        model: a masked model, on any device.
        masker: draws the masks.
        texts: the ids of each text.
    """
    drawn = [masker.mask(f"held out {n}", ids, _COPY) for n, ids in enumerate(texts)]
    masked = [text for text in drawn if len(text.positions)]
    if not masked:
        return {}
    loss, right, count = 0.0, 0, 0
    for start in range(0, len(masked), _BATCH):
        batch = masked[start : start + _BATCH]
        logp_NV, labels_N = _predictions(model, batch)
        loss -= float(logp_NV.gather(-1, labels_N[:, None]).double().sum())
        right += int((logp_NV.argmax(-1) == labels_N).sum())
        count += len(labels_N)
    return {
        "rows held out": len(masked),
        "masked loss on them": round(loss / count, 4),
        "masked tokens predicted": round(right / count, 4),
    }


@torch.inference_mode()
def _predictions(
    model: "PreTrainedModel", batch: Sequence[MaskedText]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities at the masked tokens of a batch, (N, V), and the tokens, (N,)."""
    ids_BS = pad_right([text.ids.tolist() for text in batch], 0).to(model.device)
    mask_BS = pad_right([[1] * len(text.ids) for text in batch], 0).to(model.device)
    width = ids_BS.shape[1]
    places = [n * width + int(at) for n, text in enumerate(batch) for at in text.positions]
    positions_N = torch.tensor(places, device=model.device)
    logits_NV = encoder_forward(model, ids_BS, mask_BS, positions_N).logits
    labels_N = torch.tensor([int(label) for text in batch for label in text.labels])
    return logits_NV.float().log_softmax(-1).cpu(), labels_N
