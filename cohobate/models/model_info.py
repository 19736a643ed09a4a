"""Facts about a model, read from the small files of its folder: no weights are loaded."""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from cohobate.errors import UserError
from cohobate.models import checkpoints, seeing
from cohobate.models.chat_templates import TemplateSettings, default_template, refused_turns
from cohobate.models.folder_formats import check_folder, weight_files
from cohobate.models.template_facts import TemplateFacts, template_facts

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_VISION = re.compile(r"(?:^|\.)vision_tower\.")
"""Weights of a model that sees whose layers are not those of its text."""
_BUFFER = re.compile(r"(\.(attn|attention)\.(masked_)?bias|inv_freq)$")
"""Masks and tables that old checkpoints store beside their weights."""
_HEADS_OF_OTHER_TASKS = re.compile(
    r"For(MaskedLM|PreTraining|(Sequence|Token)Classification|QuestionAnswering|RewardModel)$"
)
_HEADER_LIMIT = 100_000_000  # the format's own bound on its header


@dataclass(frozen=True)
class ModelInfo:
    """A model's configuration, weight shapes, tokenizer and chat template."""

    folder: Path
    config: dict[str, Any]
    """config.json under the names that all architectures share (`hidden_size`, also where it is
    called `n_embd`); of a multimodal model, the part about text."""
    shapes: dict[str, tuple[int, ...]]
    """Shape of each stored weight. Tied ones are stored once."""
    vocabulary: dict[str, int]
    """Every token and its id."""
    eos: str
    """Token that ends an answer."""
    template: str
    """Chat template; empty where there is none."""
    tokenizer: Any
    """The tokenizer itself."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

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
        count = 0
        for name, shape in self.shapes.items():
            layer = None if _VISION.search(name) else _LAYER.search(name)
            count += prod(shape) * (list(chosen).count(int(layer[1])) if layer else 1)
        return count

    @property
    def highest_id(self) -> int:
        """The highest id that the tokenizer gives."""
        return max(self.vocabulary.values())

    def with_tokenizer_of(self, other: "ModelInfo") -> "ModelInfo":
        """Return this model with the tokenizer, end-of-sequence token and template of `other`.

        Raises:
            UserError: a token that both have stands for another id in each.
        """
        both = self.vocabulary.keys() & other.vocabulary.keys()
        ours, theirs = ({t: model.vocabulary[t] for t in both} for model in (self, other))
        if odd := difference(theirs, ours):
            raise UserError(
                f"the student cannot take the teacher's tokenizer: {odd}",
                where="params.yaml, section shape.tokenizer",
                fix="choose a student of the same family",
            )
        fields = ("eos", "template", "tokenizer", "vocabulary")
        return replace(self, **{name: getattr(other, name) for name in fields})

    def with_template(self, settings: TemplateSettings) -> "ModelInfo":
        """Return this model with its chat template set as params.yaml says."""
        settings.write_into(self.tokenizer)
        return replace(self, template=default_template(self.tokenizer).strip())

    @property
    def refused_turns(self) -> list[str]:
        """Kinds of turns that its chat template refuses."""
        if not self.template:
            return []
        return refused_turns(
            lambda turns: str(
                self.tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, tokenize=False
                )
            )
        )

    @cached_property
    def template_facts(self) -> TemplateFacts | None:
        """What its chat template does with conversations; None where it has none."""
        return template_facts(self.tokenizer) if self.template else None

    def to_json(self) -> dict[str, Any]:
        """Return the facts that preflight writes down, as JSON values."""
        return {
            "architecture": (self.config.get("architectures") or ["unknown"])[0],
            "context": self.config.get("max_position_embeddings"),
            "eos": self.eos,
            "eos_id": self.vocabulary.get(self.eos),
            "fingerprint": self.fingerprint,
            "layers": self.depth,
            "padded_ids": self.rows - len(self.vocabulary),
            "parameters": self.parameters(),
            "refused_content": self.template_facts.refused if self.template_facts else [],
            "refused_turns": self.refused_turns,
            "parameters_of_embeddings": self.parameters_of_embeddings,
            "template_hash": _hash(self.template) if self.template else "",
            "vocabulary": len(self.vocabulary),
            "vocabulary_hash": _hash(sorted(self.vocabulary.items())),
            "width": self.config.get("hidden_size"),
        }


def read_model_info(folder: Path, *, encoder: bool = False, student: bool = False) -> ModelInfo:
    """Read the facts about the model of a folder.

    Args:
        folder: in Hugging Face format.
        encoder: whether an encoder is wanted, not a causal language model.
        student: whether it may be a model that sees (cohobate/models/seeing.py).

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    check_folder(folder)
    config = _config(folder, encoder, student=student)
    tokenizer = checkpoints.load_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    # an encoder generates nothing that had to end: the token behind its texts stands there
    eos = (tokenizer.sep_token or tokenizer.eos_token) if encoder else tokenizer.eos_token
    if eos not in vocabulary and not encoder:
        raise UserError(
            "the tokenizer names no end-of-sequence token: no answer could ever end",
            where=str(folder / "tokenizer_config.json"),
            fix='name it there: "eos_token": "<the token that ends an answer>"',
        )
    return ModelInfo(
        folder=folder,
        config=config,
        shapes=_stored(folder),
        vocabulary=vocabulary,
        eos=eos or "",
        template=default_template(tokenizer).strip(),
        tokenizer=tokenizer,
    )


def _config(folder: Path, wants_encoder: bool, *, student: bool) -> dict[str, Any]:
    """Return the configuration of a model under the names that all architectures share.

    Raises:
        UserError: transformers does not know the architecture, or it is none of this kind.
    """
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    from cohobate.models.layers import shared_names

    config_json = json.loads((folder / "config.json").read_bytes())
    kind = str(config_json.get("model_type") or "none")
    try:
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each architecture checks its sizes in its own way
        problem = f"cannot read config.json (model_type {kind}): {_first_line(error)}"
        if config_json.get("auto_map"):
            problem = f"the model (model_type {kind}) needs code of its own, which is not run here"
        fix = "use a model that transformers knows by itself"
        raise UserError(problem, where=str(folder), fix=fix) from error
    name = (config.architectures or ["unknown"])[0]
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    encoder = masked and not getattr(config, "is_decoder", False)
    if wants_encoder:
        _check_encoder(config, name, encoder, folder)
        return shared_names(config) | {"architectures": config.architectures}
    other = _HEADS_OF_OTHER_TASKS.search(name)
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    causal = causal or (student and config.model_type == seeing.MODEL_TYPE)
    if config.is_encoder_decoder or encoder or other or not causal:
        type_of_model = (
            "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        )
        fix = "use a causal language model, such as a Llama, Qwen, Gemma or GPT-2"
        if encoder and not config.is_encoder_decoder:
            fix += (
                "; an encoder can be a student: init_student: {type: classifier}, or an embedder, "
            )
            fix += "and its teacher: teachers.<key>.kind: embedder"
        if config.model_type == seeing.MODEL_TYPE:
            fix += "; a model that sees can be a student: init_student: {type: pretrained, ...}"
        raise UserError(
            f"{name} (model_type {kind}) is {type_of_model}: it can be neither teacher nor student",
            where=str(folder),
            fix=fix,
        )
    text = config.get_text_config(decoder=True)
    return shared_names(text) | {"architectures": config.architectures}


def _check_encoder(config: Any, name: str, encoder: bool, folder: Path) -> None:
    """Refuse a model that is no encoder, or that has no class for classification."""
    from transformers.models.auto import modeling_auto

    classes = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    if config.is_encoder_decoder or not encoder or config.model_type not in classes:
        raise UserError(
            f"{name} (model_type {config.model_type}) is no encoder: it can be neither a "
            "classifier nor an embedder",
            where=str(folder),
            fix="model: all-minilm-l6-v2, or another BERT, RoBERTa, DistilBERT or "
            "ModernBERT; a causal model is a student by init_student: {type: pretrained}",
        )


def _stored(folder: Path) -> dict[str, tuple[int, ...]]:
    stored = {name: shape for file in weight_files(folder) for name, shape in _shapes(file).items()}
    return {name: shape for name, shape in stored.items() if not _BUFFER.search(name)}


def difference(teacher: dict[str, int], student: dict[str, int]) -> str:
    """Return in words the first token that two vocabularies number differently; or nothing."""
    if teacher == student:
        return ""
    tokens = sorted(teacher.keys() | student.keys(), key=lambda t: (teacher.get(t, 1 << 62), t))
    token = next(t for t in tokens if teacher.get(t) != student.get(t))
    ids = [str(vocabulary.get(token, "absent")) for vocabulary in (teacher, student)]
    return f"{token!r} is {ids[0]} in the teacher, {ids[1]} in the student"


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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
