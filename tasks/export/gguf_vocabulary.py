"""Vocabulary of a GGUF file: tokens with their types, merges, and the pre-tokenizer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cohobate.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_WORDS + r"\p{N}|" + _REST, "ByteLevel"): "qwen2",
    (_WORDS + r"\p{N}{1,3}|" + _REST, "ByteLevel"): "llama-bpe",
}
"""How a byte-level tokenizer cuts text before it merges, and llama.cpp's name for it."""


def add_vocabulary(
    writer: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, rows: int
) -> None:
    """Add a tokenizer, its special tokens and its chat template to a GGUF file being written.

    Args:
        writer: of the package `gguf`.
        tokenizer: the one in `folder`.
        folder: of the model, for the files that the package reads itself.
        rows: of the embedding; ids that no token has are filled up.

    Raises:
        UserError: the tokenizer is not a byte-level one that llama.cpp has a name for.
    """
    import gguf

    kinds = gguf.TokenType
    added = tokenizer.added_tokens_decoder
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens, types = [], []
    # llama.cpp wants a token for each row of the embedding, padding included
    for number in range(rows):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(kinds.UNUSED)
        elif number in added:
            types.append(kinds.CONTROL if added[number].special else kinds.USER_DEFINED)
        else:
            types.append(kinds.NORMAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(folder))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=rows)
    # whether a BOS is put before a text is known by the tokenizer alone: it is tried
    first = tokenizer("a")["input_ids"][0]
    special.add_special_token["bos"] = first == tokenizer.bos_token_id
    special.add_to_gguf(writer, quiet=True)


def _cut(folder: Path) -> str:
    """Return llama.cpp's name for how the tokenizer in `folder` cuts text into words."""
    written = json.loads((folder / "tokenizer.json").read_text())
    pre_tokenizer = written.get("pre_tokenizer") or {"type": "nothing"}
    # llama.cpp has the cuts of known tokenizers built in, and takes no pattern from the file
    steps = tuple(
        step["pattern"].get("Regex", "") if step["type"] == "Split" else step["type"]
        for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    )
    if written["model"]["type"] != "BPE" or steps not in _CUTS:
        raise UserError(
            f"llama.cpp's name for this tokenizer is not known ({written['model']['type']}, "
            f"cut by {' then '.join(steps)})",
            where=str(folder / "tokenizer.json"),
            fix="take another form, or llama.cpp's own converter on the form safetensors",
        )
    return _CUTS[steps]
