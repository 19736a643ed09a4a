"""Quantised forms: linear layers in 8 or 4 bits by torchao, loaded by transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from cohobate.data.records import Row
from cohobate.errors import UserError
from cohobate.models import checkpoints
from cohobate.models.number_formats import Precision
from tasks.export.form import Form, Questions, Tolerance, not_installed
from tasks.export.safetensors import greedy_answers, pipeline_usage, read_losses


class Quantised(Form):
    """Weights of linear layers in 8 or 4 bits; embeddings, norms and the head stay in bfloat16."""

    precision: Precision = "auto"
    """Number format of these, and of the products, when it is opened for the check."""
    tolerance: Tolerance = Tolerance(score=0.02, agreement=0.95)

    reader: ClassVar[str] = "transformers with torchao"

    def scheme(self) -> Any:
        """Return torchao's configuration."""
        raise NotImplementedError

    @property
    def usage(self) -> str:
        """Return a few lines of transformers."""
        return pipeline_usage("bfloat16", "transformers torchao")

    def write(self, student: Path, folder: Path) -> None:
        """Quantise layer by layer while loading, and save.

        Raises:
            UserError: torchao is not installed, or the weights are published rounded.
        """
        import torch
        from transformers import AutoModelForCausalLM, TorchAoConfig

        _refuse_rounded(student, self.name)
        try:
            chosen = TorchAoConfig(self.scheme())
        except ImportError as error:
            raise not_installed("torchao", self.name, "quantised") from error
        model = AutoModelForCausalLM.from_pretrained(
            student, dtype=torch.bfloat16, quantization_config=chosen, local_files_only=True
        )
        model.save_pretrained(folder)
        checkpoints.load_tokenizer(student).save_pretrained(folder)

    def answers(self, folder: Path, questions: Questions) -> list[str]:
        """Answer with cohobate/generation/decoding.py, which every stage answers with."""
        return greedy_answers(folder, self.precision, questions)

    def losses(self, folder: Path, rows: Sequence[Row], threads: int) -> list[float]:
        """Read the answers with cohobate/generation/likelihood.py."""
        return read_losses(folder, self.precision, rows, threads)


def _refuse_rounded(student: Path, form: str) -> None:
    """Refuse weights on a grid: the largest of a group is cut there, which would move its scale."""
    made_of = checkpoints.provenance(student).get("params", {})
    if (made_of.get("quantisation") or {}).get("publish") == "rounded":
        raise UserError(
            f"weights that are published rounded would be rounded once more for the form {form}",
            where=str(student),
            fix="quantisation.publish: trained, or export.forms: [{type: safetensors}]",
        )


class Int8(Quantised):
    """A scale for each row of weights; with `dynamic`, activations are in 8 bits too."""

    type: Literal["int8"]
    dynamic: bool = False
    """Whether activations are quantised as they come, so that products run on 8-bit numbers."""

    @property
    def name(self) -> str:
        """Return `int8` or `int8-dynamic`."""
        return "int8-dynamic" if self.dynamic else self.type

    def scheme(self) -> Any:
        """Return torchao's configuration."""
        from torchao import quantization

        if self.dynamic:
            return quantization.Int8DynamicActivationInt8WeightConfig()
        return quantization.Int8WeightOnlyConfig()


class Int4(Quantised):
    """Sixteen values, a scale for each group of weights.

    On a CPU torchao stores a byte for each weight: this form is for what is made from it. To save
    bytes take `gguf` with `quantisation: q4_0`.
    """

    type: Literal["int4"]
    group: int = 32
    """Weights that share a scale; must divide the width of every linear layer."""
    tolerance: Tolerance = Tolerance(score=0.03, agreement=0.9)

    @property
    def name(self) -> str:
        """Return `int4`."""
        return self.type

    def scheme(self) -> Any:
        """Return torchao's configuration."""
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, PerGroup

        bits = torch.int4  # type: ignore[attr-defined]  # its stubs lag behind
        return IntxWeightOnlyConfig(weight_dtype=bits, granularity=PerGroup(self.group))
