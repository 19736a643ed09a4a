"""What a model folder says of its model, read from small files: no weights, no torch."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.models import checkpoints

_LAYER = re.compile(r"\.(\d+)\.")
_HEADER_LIMIT = 100_000_000  # the format's own bound on its header


@dataclass(frozen=True)
class Outline:
    """A model's shape, vocabulary and manners."""

    folder: Path
    config: dict[str, Any]
    """config.json; of a model that also sees or hears, the part about text."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each stored weight. Tied ones are stored once."""
    vocabulary: dict[str, int]
    """Every token and its id."""
    eos: str
    """Token that ends an answer."""
    template: str
    """Chat template; empty where there is none."""
    encode: Callable[[str], list[int]]
    """The tokenizer itself."""

    @cached_property
    def fingerprint(self) -> str:
        """What identifies the content of the folder."""
        return checkpoints.fingerprint(self.folder)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return int(self.config["num_hidden_layers"])

    @property
    def rows(self) -> int:
        """Rows of the embedding: ids that the model could take or give."""
        return int(self.config["vocab_size"])

    @property
    def parameters_of_embeddings(self) -> int:
        """Number of weights in embeddings and head."""
        return sum(
            prod(shape)
            for name, shape in self.shapes.items()
            if not _LAYER.search(name) and len(shape) == 2 and shape[0] == self.rows
        )

    def parameters(self, layers: list[int] | None = None) -> int:
        """Return the number of weights: of all, or with only these layers (repeats count)."""
        chosen = range(self.depth) if layers is None else layers
        found = 0
        for name, shape in self.shapes.items():
            layer = _LAYER.search(name)
            found += prod(shape) * (list(chosen).count(int(layer[1])) if layer else 1)
        return found

    @property
    def highest_id(self) -> int:
        """The highest id that the tokenizer gives."""
        return max(self.vocabulary.values())

    def speaking_like(self, other: "Outline") -> "Outline":
        """Return this model with the tokenizer of `other`, its closing token and chat template.

        Raises:
            UserError: a token that both have stands for another id in each.
        """
        both = self.vocabulary.keys() & other.vocabulary.keys()
        ours, theirs = ({t: model.vocabulary[t] for t in both} for model in (self, other))
        if odd := difference(theirs, ours):
            raise UserError(
                f"the student cannot take the teacher's tokenizer: {odd}",
                where="params.yaml, section shape.tokenizer",
                mend="choose a student of the same family",
            )
        manners = {name: getattr(other, name) for name in ("eos", "template", "encode")}
        return replace(self, vocabulary=other.vocabulary, **manners)

    def facts(self) -> dict[str, Any]:
        """Return what is worth keeping, as JSON values."""
        return {
            "architecture": (self.config.get("architectures") or ["unknown"])[0],
            "context": self.config.get("max_position_embeddings"),
            "eos": self.eos,
            "eos_id": self.vocabulary[self.eos],
            "fingerprint": self.fingerprint,
            "layers": self.depth,
            "padded_ids": self.rows - len(self.vocabulary),
            "parameters": self.parameters(),
            "parameters_of_embeddings": self.parameters_of_embeddings,
            "template_hash": _hash(self.template) if self.template else "",
            "vocabulary": len(self.vocabulary),
            "vocabulary_hash": _hash(sorted(self.vocabulary.items())),
            "width": self.config.get("hidden_size"),
        }


def outline_of(folder: Path) -> Outline:
    """Read what a model folder says of its model.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    from tokenizers import Tokenizer

    config = _json(folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError("no safetensors here: other formats are not loaded", where=str(folder))
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"cannot read tokenizer.json: {error}", where=str(folder)) from error
    manners = _json(folder / "tokenizer_config.json")
    shapes = {k: v for weight in weights for k, v in _shapes(weight).items()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return Outline(
        folder=folder,
        config=config | config.get("text_config", {}),
        shapes=shapes,
        vocabulary=vocabulary,
        eos=_eos(manners, vocabulary, folder),
        template=_template(manners, folder),
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
    )


def difference(teacher: dict[str, int], student: dict[str, int]) -> str:
    """Return in words the first token that two vocabularies number differently; or nothing."""
    if teacher == student:
        return ""
    tokens = sorted(teacher.keys() | student.keys(), key=lambda t: (teacher.get(t, 1 << 62), t))
    token = next(t for t in tokens if teacher.get(t) != student.get(t))
    ids = [str(vocabulary.get(token, "absent")) for vocabulary in (teacher, student)]
    return f"{token!r} is {ids[0]} in the teacher, {ids[1]} in the student"


def _eos(manners: dict[str, Any], vocabulary: dict[str, int], folder: Path) -> str:
    named = manners.get("eos_token")
    token = named.get("content") if isinstance(named, dict) else named
    if token not in vocabulary:
        raise UserError(
            "the tokenizer names no end-of-sequence token: no answer could ever end",
            where=str(folder / "tokenizer_config.json"),
        )
    return str(token)


def _template(manners: dict[str, Any], folder: Path) -> str:
    apart = folder / "chat_template.jinja"
    named = manners.get("chat_template") or ""
    if isinstance(named, list):
        named = next((t["template"] for t in named if t["name"] == "default"), "")
    return (apart.read_text() if apart.exists() else str(named)).strip()


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header of a safetensors file, and compare what it promises with the file's size."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, _HEADER_LIMIT)))
            weights = {k: v for k, v in header.items() if k != "__metadata__"}
            end = max(weight["data_offsets"][1] for weight in weights.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError("not a whole safetensors file", where=str(path)) from None
    if path.stat().st_size != 8 + length + end:
        raise UserError("truncated or altered: not the size its header says", where=str(path))
    return {name: tuple(weight["shape"]) for name, weight in weights.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
        return value
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing", where=str(path.parent)) from None
    except ValueError as error:
        raise UserError(f"{path.name} is damaged: {error}", where=str(path.parent)) from error


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
