"""Vocabulary trimming: a model keeps the tokens that rows use; `restore` undoes it.

Kept are the tokens of the rows, all added tokens (end of sequence, roles), every byte, and the
tokens that these are merged from. Byte-pair encoding then tokenises the rows as before: each merge
that it made of them is still there, and none is new. Other text has more, shorter tokens. Tokens
keep their order and their strings, so that each string gives its id in the teacher.
"""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.vocabularies import ids_within

_BYTES = {f"<0x{n:02X}>" for n in range(256)}.union(pre_tokenizers.ByteLevel.alphabet())


def trim(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Iterable[Row]
) -> PreTrainedTokenizerBase:
    """Trim a model's vocabulary to the tokens that rows use, in place; return its tokenizer.

    Raises:
        UserError: the tokenizer is not byte-pair encoding.
    """
    used = {number for row in encode_all(tokenizer, list(rows)) for number in row.ids}
    trimmed = trimmed_tokenizer(tokenizer, used)
    ids = ids_within(tokenizer.get_vocab(), trimmed.get_vocab())
    assert ids is not None
    for side in ("input", "output"):
        module = getattr(model, f"get_{side}_embeddings")()
        getattr(model, f"set_{side}_embeddings")(_only(module, torch.from_numpy(ids)))
    if model.config.get_text_config().tie_word_embeddings:
        model.tie_weights()
    # `ids` rises, so tokens keep their order
    new = {int(old): number for number, old in enumerate(ids)}
    outer = model.get_input_embeddings()
    outer.padding_idx = new.get(outer.padding_idx)
    model.config.get_text_config().vocab_size = len(ids)
    # the two are one object in models of text alone: renumbered once
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        _renumber(config, new)
    _renumber(model.generation_config, new)
    return trimmed


def restore(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whole: Path
) -> PreTrainedTokenizerBase:
    """Give a trimmed model back the vocabulary of the model in `whole`; return its tokenizer.

    The embeddings of the missing tokens are taken from `whole`, so that they can be read. The
    generation configuration suppresses them: the model never generates them, and its answers stay
    what they were.
    """
    whole_model, full = checkpoints.load(whole)
    ids = ids_within(full.get_vocab(), tokenizer.get_vocab())
    if ids is None:
        raise UserError("the trimmed vocabulary is no part of this model's", where=str(whole))
    at = torch.from_numpy(ids)
    ours, theirs = (m.get_input_embeddings().weight.shape[1] for m in (model, whole_model))
    if ours != theirs:
        raise UserError(
            f"its embeddings have width {theirs}, the trimmed model's {ours}",
            where=str(whole),
            fix="cohobate run --set export.vocabulary=used",
        )
    for side in ("input", "output"):
        ours, theirs = (getattr(m, f"get_{side}_embeddings")() for m in (model, whole_model))
        # ours where there is one, the whole model's for the missing tokens
        theirs.weight.data[at] = ours.weight.detach().to(theirs.weight.dtype)
        getattr(model, f"set_{side}_embeddings")(theirs)
    config = model.config.get_text_config()
    if config.tie_word_embeddings:
        model.tie_weights()
    config.vocab_size = len(model.get_input_embeddings().weight)
    old = dict(enumerate(ids.tolist()))
    for document in {id(c): c for c in (model.config, config, model.generation_config)}.values():
        _renumber(document, old)
    known = set(old.values())
    # what the trimmed model has no token for, padding rows of the embeddings included
    lacking = [number for number in range(config.vocab_size) if number not in known]
    model.generation_config.suppress_tokens = lacking
    return full


def trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerBase, used: set[int]
) -> PreTrainedTokenizerBase:
    """Return a tokenizer of the used tokens, and of the tokens that they are merged from."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text())
        tokenizer_config_path = folder / "tokenizer_config.json"
        tokenizer_config = json.loads(tokenizer_config_path.read_text())
        new = _trim_model(document, used)
        _renumber_added(document, new)
        _renumber_post(document.get("post_processor"), new)
        # it has the old ids; tokenizer.json lists the added tokens too
        tokenizer_config.pop("added_tokens_decoder", None)
        path.write_text(json.dumps(document, ensure_ascii=False))
        tokenizer_config_path.write_text(json.dumps(tokenizer_config, ensure_ascii=False))
        # tokenizer.json alone is up to date: the loader must not find the old files
        for name in ("vocab.json", "merges.txt", "tokenizer.model"):
            (folder / name).unlink(missing_ok=True)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _trim_model(document: dict[str, Any], used: set[int]) -> dict[int, int]:
    """Trim vocabulary and merges in place; return the new id of each old one that is kept."""
    model = document["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"a {model['type']} vocabulary cannot be trimmed: only byte-pair encoding can",
            where="params.yaml, section init_student.vocabulary",
            fix="init_student.vocabulary: whole",
        )
    # older files have a merge as "left right", newer ones as a pair
    pairs = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    made_of: dict[str, list[str]] = {}
    for left, right in pairs:
        # of every merge that gives a token: which one applies depends on the text
        made_of.setdefault(left + right, []).extend((left, right))
    ids: dict[str, int] = model["vocab"]
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    strings = {number: token for token, number in (ids | added).items()}
    waiting = [strings[n] for n in used] + [t for t in ids if t in _BYTES] + list(added)
    kept: set[str] = set()
    # the closure: whatever a kept token is merged from is kept too
    while waiting:
        token = waiting.pop()
        if token not in kept:
            kept.add(token)
            waiting += made_of.get(token, ())
    # by old id, so that the order of tokens stays
    order = sorted(kept & (ids | added).keys(), key=lambda token: (ids | added)[token])
    new = {(ids | added)[token]: number for number, token in enumerate(order)}
    model["vocab"] = {token: new[ids[token]] for token in order if token in ids}
    # a merge stays where its result and both parts do
    model["merges"] = [list(p) for p in pairs if "".join(p) in kept and kept.issuperset(p)]
    return new


def _renumber_added(document: dict[str, Any], new: dict[int, int]) -> None:
    for token in document["added_tokens"]:
        token["id"] = new[token["id"]]


def _renumber_post(post: Any, new: dict[int, int]) -> None:
    """Renumber the ids of a post-processor, which adds special tokens."""
    if not post:
        return
    for inner in post.get("processors", ()):
        _renumber_post(inner, new)
    for token in (post.get("special_tokens") or {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in post:
            post[name][1] = new[post[name][1]]


def _only(module: Any, ids: torch.Tensor) -> Any:
    module.weight = nn.Parameter(module.weight.detach()[ids].contiguous())
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(module.bias.detach()[ids].contiguous())
    for name in ("num_embeddings", "out_features"):
        if hasattr(module, name):
            setattr(module, name, len(ids))
    return module


def _renumber(config: Any, new: dict[int, int]) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(config, name, [new[n] for n in value if n in new])
        elif value is not None:
            setattr(config, name, new.get(value))
