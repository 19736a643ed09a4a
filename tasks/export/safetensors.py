"""Safetensors form: a Hugging Face folder with the checkpoint's own weights, byte for byte."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

from cohobate.data.records import Row
from cohobate.evaluation.model_under_test import open_model
from cohobate.generation.requests import Decoding
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision
from tasks.export.form import Form, Questions, Tolerance


class Safetensors(Form):
    """A Hugging Face folder: safetensors, configuration, tokenizer."""

    type: Literal["safetensors"]
    precision: Precision = "auto"
    """Number format in which it is opened for the check, like the original."""
    tolerance: Tolerance = Tolerance(score=0, agreement=1, loss=0.001)

    reader: ClassVar[str] = "transformers"
    writes_classifiers: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Return `safetensors`."""
        return self.type

    @property
    def usage(self) -> str:
        """Return a few lines of transformers."""
        return pipeline_usage("auto")

    def usage_of(self, folder: Path) -> str:
        """Return a few lines of transformers, of the pipeline that fits the model."""
        return classifier_usage() if checkpoints.is_classifier(folder) else self.usage

    def write(self, student: Path, folder: Path) -> None:
        """Copy the checkpoint's files; the same bytes take no second place in DVC's cache."""
        checkpoints.copy_parts(student, folder)

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer with cohobate/generation/decoding.py, which every stage answers with."""
        return greedy_answers(folder, self.precision, questions)

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float]:
        """Read the answers with cohobate/generation/likelihood.py."""
        return read_losses(folder, self.precision, rows, threads)


def pipeline_usage(dtype: str, packages: str = "") -> str:
    """Return a few lines of transformers for the model card, and which packages they need."""
    install = f"# pip install {packages}\n" if packages else ""
    return (
        f"```python\n{install}"
        "from transformers import pipeline\n\n"
        f'generator = pipeline("text-generation", ".", dtype="{dtype}")\n'
        "print(generator(prompt, max_new_tokens=16, do_sample=False, return_full_text=False))\n"
        "```"
    )


def classifier_usage() -> str:
    """Return a few lines of transformers for the model card of a classifier."""
    return (
        "```python\nfrom transformers import pipeline\n\n"
        'classifier = pipeline("text-classification", ".")\n'
        'print(classifier(prompt))   # [{"label": ..., "score": ...}]\n'
        "```"
    )


def read_losses(
    folder: Path, precision: Precision, rows: Sequence[Row], threads: int
) -> list[float]:
    """Return a checkpoint's mean loss on each row's answer, in nats a token, or of its label."""
    return [*open_model(folder, precision).answer_losses(rows, threads=threads)]


def greedy_answers(folder: Path, precision: Precision, questions: Questions) -> list[str]:
    """Return the greedy answers of a checkpoint."""
    tested = open_model(folder, precision)
    decoding = Decoding(max_tokens=questions.max_tokens)
    # batches are by length: answers come in another order than prompts
    answers = dict(tested.answers(questions.prompts, decoding, threads=questions.threads))
    return [answers[position].full_text for position in range(len(questions.prompts))]
