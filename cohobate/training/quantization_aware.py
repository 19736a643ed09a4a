"""Quantisation-aware training: the student computes with rounded weights while it is trained.

Each forward pass rounds the weights of the linear layers to the integers' grid, and the gradient
passes straight through (Jacob et al. 2018). The published weights are not rounded: rounding makes
the same integers of them. With `publish: rounded` they are. The checkpoint's provenance says which.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from cohobate.errors import UserError
from cohobate.params import Section

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NoQuantisation(Section):
    """No quantisation."""

    type: Literal["none"] = "none"

    @contextmanager
    def prepare(self, model: "PreTrainedModel") -> Iterator[None]:
        """Do nothing."""
        yield


class FakeQuantisation(Section):
    """Symmetric integer weights with a scale for each group of inputs; not head or embeddings."""

    type: Literal["int8", "int4"]
    group_size: int = Field(32, ge=8)
    """Weights that share a scale; it must divide the inputs of every linear layer."""
    publish: Literal["trained", "rounded"] = Field(
        "trained", exclude_if=lambda chosen: chosen == "trained"
    )
    """Which weights are published: those that were trained, or what rounding makes of them, so
    that a phase's scores are those of the quantised model."""

    @contextmanager
    def prepare(self, model: "PreTrainedModel") -> Iterator[None]:
        """Let the linear layers compute with rounded weights within the block.

        Raises:
            UserError: torchao is not installed, or a width is no multiple of the group.
        """
        import torch
        from torch import nn

        try:
            from torchao.quantization import quantize_
            from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig
        except ImportError:
            fix = "uv pip install -e '.[quantised]'"
            raise UserError("quantisation needs torchao", where="quantisation", fix=fix) from None

        head = model.get_output_embeddings()

        def is_quantised(module: nn.Module, name: str) -> bool:
            return isinstance(module, nn.Linear) and module is not head

        # all layers are checked before one is changed
        for name, module in model.named_modules():
            if is_quantised(module, name) and module.in_features % self.group_size:
                raise UserError(
                    f"{name} has {module.in_features} inputs, no multiple of {self.group_size}",
                    where="quantisation.group_size",
                )
        grid = IntxFakeQuantizeConfig(getattr(torch, self.type), group_size=self.group_size)
        quantize_(model, QATConfig(weight_config=grid, step="prepare"), filter_fn=is_quantised)
        yield
        if self.publish == "rounded":
            _round_weights(model)
        # no integer format is given: linear layers become plain again, their weights unrounded
        quantize_(model, QATConfig(step="convert"))


def _round_weights(model: "PreTrainedModel") -> None:
    """Write into the layers what their forward pass has multiplied with."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if quantizer := getattr(module, "weight_fake_quantizer", None):
                module.weight.copy_(quantizer(module.weight))


Quantisation = Annotated[NoQuantisation | FakeQuantisation, Field(discriminator="type")]
