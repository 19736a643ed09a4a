"""Which layers of a student learn from which of the teacher, and the maps between their widths.

Shapes: N valid tokens, F features, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward import ForwardOutputs, Part
from cohobate.losses.features import Feature, LayerMap, TokenPositions
from cohobate.models.layers import blocks_of


class LayerMatching(nn.Module):
    """Feature terms between one student and one teacher; trained with the student, never saved."""

    def __init__(
        self,
        terms: Sequence[Feature],
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        seed: int,
    ) -> None:
        super().__init__()
        self.terms = tuple(terms)
        depths = [len(blocks_of(model)) for model in (student, teacher)]
        widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
        self.pairs = [layer_pairs(term.layers, *depths) for term in terms]
        self.projections = nn.ModuleDict()
        self.mixes = nn.ParameterDict()
        rng = torch.Generator().manual_seed(seed)
        for number, (term, pairs) in enumerate(zip(terms, self.pairs, strict=True)):
            for layer, of_teacher in pairs:
                name = f"{number}-{layer}-{'-'.join(map(str, of_teacher))}"
                if term.projects and widths[0] != widths[1]:
                    self.projections[name] = _linear(widths[0], widths[1], rng)
                if len(of_teacher) > 1:
                    self.mixes[name] = nn.Parameter(torch.zeros(len(of_teacher)))

    @property
    def parts(self) -> frozenset[Part]:
        """What both models must show."""
        return frozenset(term.part for term in self.terms)

    def forward(
        self,
        student: ForwardOutputs,
        teacher: ForwardOutputs,
        place: TokenPositions,
        response: Tensor | float,
    ) -> Tensor:
        """Return the weighted loss of each valid token and term, (N, F).

        Args:
            student: what its pass shows; differentiable.
            teacher: what its pass shows.
            place: where the valid tokens are.
            response: mean loss a token of the response terms, for the terms that balance.
        """
        losses = []
        for number, term in enumerate(self.terms):
            loss_N = torch.stack(self._compared(number, term, student, teacher, place)).mean(0)
            if term.balance:
                loss_N = loss_N * (response / loss_N.detach().mean().clamp_min(1e-12))
            losses.append(term.weight * loss_N)
        return torch.stack(losses, -1)

    def _compared(
        self,
        number: int,
        term: Feature,
        student: ForwardOutputs,
        teacher: ForwardOutputs,
        place: TokenPositions,
    ) -> list[Tensor]:
        first = 0 if term.part == "hidden" else 1  # of what has no embeddings, block 1 comes first
        ours, theirs = getattr(student, term.part), getattr(teacher, term.part)
        found = []
        for layer, of_teacher in self.pairs[number]:
            name = f"{number}-{layer}-{'-'.join(map(str, of_teacher))}"
            mine, target = ours[layer - first], theirs[of_teacher[0] - first]
            if name in self.projections:
                mine = self.projections[name](mine)
            if name in self.mixes:
                stacked = torch.stack([theirs[n - first].float() for n in of_teacher], -1)
                target = stacked @ self.mixes[name].softmax(-1)
            found.append(term.compare(mine, target, place))
        return found

    def report(self) -> dict[str, Any]:
        """Return the weights of the teacher's layers where they were learned, for the summary."""
        return {
            f"{self.terms[int(name.partition('-')[0])].type} of layer {name.split('-')[1]}": [
                round(share, 4) for share in mix.softmax(-1).tolist()
            ]
            for name, mix in self.mixes.items()
        }


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return, for each layer of the student that learns, the layers of the teacher it learns from.

    Args:
        layers: how they are mapped (`Feature.layers`).
        student: its number of blocks.
        teacher: its number of blocks.

    Raises:
        UserError: a layer does not exist, or the teacher has fewer blocks than the map needs.
    """
    blocks = range(1, student + 1)
    if layers == "uniform":
        return [(n, (-(-n * teacher // student),)) for n in blocks]
    if layers == "last":
        return [(student, (teacher,))]
    if layers == "learned":
        return [(n, tuple(range(1, teacher + 1))) for n in blocks]
    if layers == "top":
        if teacher < student:
            raise UserError(f"layers: top needs a teacher of {student} blocks; it has {teacher}")
        return [(n, (teacher - student + n,)) for n in blocks]
    for ours, theirs in layers:
        if not (0 <= ours <= student and 0 <= theirs <= teacher):
            raise UserError(
                f"no such pair of layers: [{ours}, {theirs}]",
                where=f"the student has {student} blocks, the teacher {teacher}",
            )
    return [(int(ours), (int(theirs),)) for ours, theirs in layers]


def _linear(width: int, to: int, rng: torch.Generator) -> nn.Linear:
    linear = nn.Linear(width, to, bias=False)
    with torch.no_grad():
        linear.weight.normal_(0, width**-0.5, generator=rng)
    return linear
