"""Embedders: encoders whose pooled hidden states are the vector of a text.

A checkpoint of one opens by transformers' AutoModel. Its config.json says how tokens become a
vector; the vectors have length one, so that their products are cosines:

    "sentence_embedding": {"max_tokens": 256, "pooling": "mean"}

A folder of sentence-transformers says the same in files of its own, which `pooling_of` reads.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cohobate.errors import UserError
from cohobate.models import checkpoints, hub

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["auto", "mean", "cls"]
"""How the tokens' hidden states become one vector: their mean, or that of the first token. `auto`:
as the folder of sentence-transformers says; the mean where the folder is none."""
_KEY = checkpoints.SENTENCE_EMBEDDING
_PACKAGED_TOKENS = 256
"""Longest text that the packaged encoder was trained on."""
_ROWS, _TOKENS, _WINDOW = 64, 8192, 4096
"""Texts and tokens of a batch, and texts that are sorted by length together."""
_READ = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers that are read; a vector's length does not change a cosine."""


def pooling_of(model: str, folder: Path, pooling: Pooling, where: str) -> dict[str, Any]:
    """Return what config.json of an embedder's checkpoint says under `sentence_embedding`.

    Args:
        model: its name in params.yaml.
        folder: in Hugging Face format; of sentence-transformers, where it says how it pools.
        pooling: how it pools, where that is given.
        where: the setting in params.yaml, for messages.

    Raises:
        UserError: its vectors are computed in another way, or the file that says so is not there.
    """
    own: dict[str, Any] = _json(folder / "config.json").get(_KEY) or {}
    longest = _json(folder / "sentence_bert_config.json").get("max_seq_length")
    if model.lower() == hub.PACKAGED_ENCODER:
        longest = _PACKAGED_TOKENS
    facts = {"pooling": pooling, "max_tokens": longest} | own
    if pooling != "auto":
        return facts | {"pooling": pooling}
    if own:
        return facts
    modules = _json(folder / "modules.json") or []
    names = [str(module["type"]).rpartition(".")[2] for module in modules]
    if unread := [name for name in names if name not in _READ]:
        raise UserError(
            f"its vectors go through a module that is not read here: {unread[0]}",
            where=f"{where}: {folder}",
            fix="take an encoder of the modules Transformer, Pooling and Normalize",
        )
    return facts | {"pooling": _pooling_module(folder, where) if "Pooling" in names else "mean"}


def _pooling_module(folder: Path, where: str) -> str:
    """Return how a folder of sentence-transformers pools."""
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():  # of the hub, the files at the top alone are fetched
        raise UserError(
            "the file 1_Pooling/config.json, which says how the encoder pools, is not here",
            where=f"{where}: {folder}",
            fix="pooling: mean, or cls: its model card says which",
        )
    config = _json(path)
    kinds = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
    named = config.get("pooling_mode")
    found = [str(named)] if named else [kinds.get(key, key) for key in chosen]
    if len(found) == 1 and found[0] in kinds.values():
        return found[0]
    raise UserError(
        f"it pools by {' and '.join(found) or 'nothing'}: only the mean and the first token are "
        "read here",
        where=str(path),
        fix="take an encoder that pools by the mean or by the first token",
    )


def describe(model: "PreTrainedModel", facts: dict[str, Any]) -> None:
    """Write into a model's configuration how it pools: it is an embedder from then on."""
    setattr(model.config, _KEY, facts)


def text_ids(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]
) -> list[list[int]]:
    """Return the token ids of texts, cut to the embedder's longest text; a text can have none."""
    static = model.config.model_type == "static_embedding"
    context = getattr(model.config, "max_position_embeddings", None)
    limits = (_facts(model)["max_tokens"], context, tokenizer.model_max_length)
    limit = min(number for number in limits if number)
    encoded = tokenizer(
        list(texts), add_special_tokens=not static, return_attention_mask=False, verbose=False
    )
    # cut by hand: a static model reads whole texts, and an encoder's last token closes a text
    rows: list[list[int]] = encoded["input_ids"]
    return rows if static else [_cut(row, limit, tokenizer.sep_token_id) for row in rows]


def _cut(row: list[int], limit: int, closing: int | None) -> list[int]:
    """Return a text's first tokens, with the token that closes it."""
    if len(row) <= limit:
        return row
    return [*row[: limit - 1], row[-1]] if row[-1] == closing else row[:limit]


def pooled(model: "PreTrainedModel", ids_BS: "Tensor", mask_BS: "Tensor") -> "Tensor":
    """Return the vectors of texts before they are brought to length one, (B, D), in float32.

    Args:
        model: an embedder.
        ids_BS: the texts, padded on the right with any id.
        mask_BS: 1 at their tokens, 0 at padding; the vector of a text without tokens is zero.
    """
    hidden_BSD: Tensor = model(input_ids=ids_BS, attention_mask=mask_BS)[0].float()
    if _facts(model)["pooling"] == "cls":
        return hidden_BSD[:, 0]
    summed_BD = (hidden_BSD * mask_BS[:, :, None]).sum(1)
    mean_BD: Tensor = summed_BD / mask_BS.sum(1, keepdim=True).clamp_min(1)
    return mean_BD


def encode(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    threads: int = 1,
) -> "Tensor":
    """Return the vectors of texts, of length one, (N, D), in float32 on the CPU."""
    import torch

    windows = [
        _encode_window(model, tokenizer, texts[start : start + _WINDOW], threads)
        for start in range(0, len(texts), _WINDOW)
    ]
    return torch.cat(windows) if windows else torch.zeros((0, int(model.config.hidden_size)))


def _encode_window(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    threads: int,
) -> "Tensor":
    import torch
    from torch.nn import functional as F

    from cohobate.thread_map import thread_map

    rows = text_ids(model, tokenizer, texts)
    vectors_ND = torch.zeros((len(rows), int(model.config.hidden_size)))

    @torch.inference_mode()
    def forward(batch: list[int]) -> "Tensor":
        ids_BS, mask_BS = padded([rows[n] for n in batch])
        vectors_BD = pooled(model, ids_BS.to(model.device), mask_BS.to(model.device))
        return F.normalize(vectors_BD, dim=-1).cpu()

    for batch, vectors_BD in thread_map(forward, _batches([*map(len, rows)]), threads):
        vectors_ND[batch] = vectors_BD
    return vectors_ND


def padded(rows: Sequence[Sequence[int]]) -> "tuple[Tensor, Tensor]":
    """Return rows of ids padded on the right, and the mask of their tokens, (B, S) each."""
    from cohobate.data.tokenized import pad_right

    # a row without tokens has one of padding
    ids_BS = pad_right([row or [0] for row in rows], 0)
    mask_BS = pad_right([[1] * len(row) or [0] for row in rows], 0)
    return ids_BS, mask_BS


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the positions of each batch, longest texts first."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    start = 0
    while start < len(order):
        size = max(1, min(_ROWS, _TOKENS // max(1, lengths[order[start]])))
        yield order[start : start + size]
        start += size


def _facts(model: "PreTrainedModel") -> dict[str, Any]:
    facts: dict[str, Any] = getattr(model.config, _KEY)
    return facts


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes()) if path.exists() else {}
