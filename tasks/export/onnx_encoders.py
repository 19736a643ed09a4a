"""ONNX graphs of encoders: from the token ids of a batch of texts and their mask to one output."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Output = Callable[["Tensor", "Tensor"], "Tensor"]
"""What a graph computes of ids and mask, (B, S) each."""


def traced(model: Any, output: Output, name: str) -> Any:
    """Return a graph with free batch and length.

    Args:
        model: whose weights the graph has.
        output: computes it with them.
        name: of the output.
    """
    import torch

    class Graph(torch.nn.Module):
        """The model, of all its outputs this one alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: "Tensor", attention_mask: "Tensor") -> "Tensor":
            return output(input_ids, attention_mask)

    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    ids_BS = torch.ones(2, 7, dtype=torch.long)
    return torch.onnx.export(
        Graph().eval(),
        (ids_BS, ids_BS.clone()),
        input_names=["input_ids", "attention_mask"],
        output_names=[name],
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        dynamo=True,
        verbose=False,
    )


def computed(session: Any, ids: list[int]) -> np.ndarray:
    """Return the output of one text, in float64; a text without tokens has one that is masked."""
    ids_1S = np.array([ids or [0]])
    mask_1S = np.ones_like(ids_1S) if ids else np.zeros_like(ids_1S)
    inputs = {"input_ids": ids_1S, "attention_mask": mask_1S}
    row: np.ndarray = session.run(None, inputs)[0][0].astype(np.float64)
    return row
