"""Models under test: what every stage needs of a student, whichever kind it is.

A causal LM, one that sees among them, generates its answer, a classifier's answer is its likeliest
label, a masked model's what it predicts behind the prompt; each gives a text and its probability.
An embedder's answer is a ranking of documents. Stages load a student by `open_model`; what differs
between the kinds is here.

Where vLLM generates the answers it holds the model alone: the weights are loaded here only once
something else is asked of the model, after `close`.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cohobate.backends.answer_backend import LOADED, AnswerBackend
from cohobate.backends.vllm import Vllm
from cohobate.data.messages import Prompt
from cohobate.data.records import Row
from cohobate.data.tokenized import encode_all, prompt_ids
from cohobate.evaluation.embedder_model import EmbedderModel
from cohobate.evaluation.masked_model import MaskedModel
from cohobate.evaluation.tested_checkpoint import ModelUnderTest
from cohobate.generation.requests import Answer, Batching, Decoding, Request
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision
from cohobate.models.seeing import is_seeing

if TYPE_CHECKING:
    from cohobate.backends.vllm_engine import VllmEngine

_BATCHING = Batching()


class CausalModel(ModelUnderTest):
    """A causal language model: it generates its answer."""

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Return True: it is what no other kind claims."""
        return True

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids: text as it stands, conversations through the chat template."""
        return prompt_ids(self.tokenizer, prompts)

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Generate the answers."""
        if isinstance(self.backend, Vllm):
            return self._answers_of_vllm(prompts, decoding)
        from cohobate.generation.decoding import generate_answers

        return generate_answers(
            self.model, self.tokenizer, prompts, decoding, batching, threads=threads
        )

    def close(self) -> None:
        """Stop vLLM, if it runs: what it has of the GPU's memory is then the model's."""
        if engine := vars(self).pop("_engine", None):
            engine.close()

    @cached_property
    def _engine(self) -> "VllmEngine":
        assert isinstance(self.backend, Vllm)
        return self.backend.model_copy(update={"precision": self.precision}).start(self.folder)

    def _answers_of_vllm(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the answers in the order of the prompts, `backend.rows` at a time."""
        from cohobate.generation.decoding import to_answer

        assert isinstance(self.backend, Vllm)
        for start in range(0, len(prompts), self.backend.rows):
            chunk = prompts[start : start + self.backend.rows]
            pairs = enumerate(zip(chunk, self.prompt_ids(chunk), strict=True), start)
            requests = [Request.of(prompt, ids, str(n)) for n, (prompt, ids) in pairs]
            completions = self._engine.complete(requests, decoding)
            for n, pair in enumerate(zip(completions, requests, strict=True), start):
                yield n, to_answer(self.tokenizer, *pair)

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the mean loss of each answer's tokens, closing token included."""
        from cohobate.generation.likelihood import Likelihood

        return Likelihood(self.model, self.tokenizer, batching, threads).answer_losses(rows)

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return the number of tokens of each answer, closing token included."""
        return [len(text.completion_ids) for text in encode_all(self.tokenizer, rows)]


class ClassifierModel(ModelUnderTest):
    """A classifier: its answer is its likeliest label, in one pass over the prompt's text."""

    scores_tokens: ClassVar[bool] = False
    unit: ClassVar[str] = "label"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Say whether the model is one for the classification of texts."""
        return checkpoints.is_classifier(folder)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the ids of the prompts' texts."""
        from cohobate.generation.classification import classifier_ids

        return classifier_ids(self.tokenizer, prompts)

    def answers(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        batching: Batching = _BATCHING,
        *,
        threads: int = 1,
    ) -> Iterator[tuple[int, Answer]]:
        """Yield the likeliest label of each prompt, with its log-probability; never sampled."""
        from cohobate.generation.classification import label_logprobs
        from cohobate.scoring.labels import LabelSet

        names = LabelSet.of_config(self.model.config).names
        scored = label_logprobs(self.model, self.tokenizer, prompts, batching, threads=threads)
        for position, logp_C in scored:
            best = int(logp_C.argmax())
            yield position, Answer(names[best], "stop", float(logp_C[best]))

    def answer_losses(
        self, rows: Sequence[Row], batching: Batching = _BATCHING, *, threads: int = 1
    ) -> Iterator[float]:
        """Yield the loss of each row's label; infinite where its answer is none."""
        from cohobate.generation.classification import label_logprobs
        from cohobate.scoring.labels import LabelSet

        labels = LabelSet.of_config(self.model.config)
        prompts = [row.full_prompt for row in rows]
        scored = label_logprobs(self.model, self.tokenizer, prompts, batching, threads=threads)
        losses = [inf] * len(rows)
        for position, logp_C in scored:
            index = labels.index(rows[position].full_answer)
            if index is not None:
                losses[position] = -float(logp_C[index])
        yield from losses

    def answer_units(self, rows: Sequence[Row]) -> list[int]:
        """Return 1 for each row: an answer is one label."""
        return [1] * len(rows)


KINDS = (EmbedderModel, ClassifierModel, MaskedModel, CausalModel)
"""A folder is of the first kind that it fits."""


def kind_of(folder: Path) -> type[ModelUnderTest]:
    """Return the kind of the model in a folder."""
    return next(kind for kind in KINDS if kind.fits(folder))


def open_model(
    folder: Path, precision: Precision, backend: AnswerBackend = LOADED
) -> ModelUnderTest:
    """Load the checkpoint of a student, or of a teacher, on the device on which it answers fastest.

    Args:
        folder: the checkpoint.
        precision: number format of its weights.
        backend: what generates its answers. Where that is vLLM, nothing is loaded yet. A
            classifier's answers, an embedder's and those of a model that sees are their own.

    Raises:
        UserError: the folder is damaged, or does not hold every weight of the model.
    """
    kind = kind_of(folder)
    takes_backend = kind is CausalModel and not is_seeing(folder)  # vLLM is given no pictures
    tested = kind(folder, precision, **({"backend": backend} if takes_backend else {}))
    if not isinstance(tested.backend, Vllm):
        _ = tested.model  # a damaged folder is refused now
    return tested
