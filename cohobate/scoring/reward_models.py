"""Reward models: sequence classifiers of transformers with one output."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cohobate.data.messages import Prompt, tools_of
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision, resolve
from cohobate.scoring.transcript import transcript

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH, _WINDOW = 16, 2048


@dataclass(frozen=True)
class RewardModel:
    """A reward model: scores an answer to a prompt, the higher the better."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @classmethod
    def of(cls, folder: Path, precision: Precision) -> "RewardModel":
        """Load the classifier of `folder`.

        Raises:
            UserError: it cannot be loaded, has several outputs, or lacks a trained head.
        """
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = checkpoints.accelerator()
        fix = "name a sequence classifier with one output, in safetensors"
        try:
            model, loaded = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=getattr(torch, resolve(precision, device)),
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers and safetensors each raise their own
            raise UserError(
                f"cannot load the reward model: {error}", where=str(folder), fix=fix
            ) from error
        # transformers fills a head that is not in the files with random weights
        if model.config.num_labels != 1 or loaded["missing_keys"]:
            raise UserError(
                "not a reward model: it needs one output and a trained head",
                where=str(folder),
                fix=fix,
            )
        return cls(model.eval().to(device), tokenizer)

    def scores(self, answers: Iterable[tuple[Prompt, str]]) -> Iterator[float]:
        """Yield the reward of each (prompt, answer), in their order.

        A conversation is rendered by the model's own chat template, with its tools; an answer is
        the text behind the reasoning, with calls of tools as text.
        """
        remaining = iter(answers)
        while window := list(islice(remaining, _WINDOW)):
            texts = [self._text(prompt, answer) for prompt, answer in window]
            rewards = [0.0] * len(texts)
            # batches of similar length need little padding
            order = sorted(range(len(texts)), key=lambda n: (len(texts[n]), n))
            for start in range(0, len(order), _BATCH):
                batch = order[start : start + _BATCH]
                for n, reward in zip(batch, self._batch([texts[n] for n in batch]), strict=True):
                    rewards[n] = reward
            yield from rewards

    def _text(self, prompt: Prompt, answer: str) -> str:
        if isinstance(prompt, str) or not self.tokenizer.chat_template:
            return transcript(prompt) + answer
        turns = [message.as_chat() for message in prompt]
        turns.append({"role": "assistant", "content": answer})
        text: str = self.tokenizer.apply_chat_template(
            turns, tools=tools_of(prompt), tokenize=False
        )
        # where template and tokenizer both begin a text with BOS, the tokenizer's is the only one
        return text.removeprefix(self._start)

    @cached_property
    def _start(self) -> str:
        """The token that the tokenizer puts before each text; empty where it puts none."""
        ids = self.tokenizer("a")["input_ids"]
        token = self.tokenizer.bos_token_id
        return str(self.tokenizer.bos_token) if token is not None and ids[0] == token else ""

    def _batch(self, texts: list[str]) -> list[float]:
        import torch

        # without a pad token texts run one by one: the classifier reads the last token
        single = self.tokenizer.pad_token_id is None or self.model.config.pad_token_id is None
        parts = [[text] for text in texts] if single else [texts]
        with torch.inference_mode():
            logits = []
            for part in parts:
                inputs = self.tokenizer(
                    part, return_tensors="pt", padding=not single, truncation=True
                )
                logits.append(self.model(**inputs.to(self.model.device)).logits[:, 0].float().cpu())
        return [round(reward, 4) for reward in torch.cat(logits).tolist()]
