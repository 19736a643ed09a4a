"""Layer matching: feature losses between pairs of layers, and the trained maps between widths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward_pass import ForwardOutputs, Part
from cohobate.losses.feature_losses import Feature, LayerMap, TokenPositions
from cohobate.models.layers import blocks_of


class LayerMatching(nn.Module):
    """Feature terms between one student and one teacher.

    Its parameters, projections and mixing weights of layers, are trained with the student and never
    saved.
    """

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
        # of its own: the projections depend on the seed alone
        rng = torch.Generator().manual_seed(seed)
        for number, (term, pairs) in enumerate(zip(terms, self.pairs, strict=True)):
            for layer, of_teacher in pairs:
                name = _pair_name(number, layer, of_teacher)
                if term.projects and widths[0] != widths[1]:
                    self.projections[name] = _linear(widths[0], widths[1], rng)
                if len(of_teacher) > 1:
                    # equal weights at first
                    self.mixes[name] = nn.Parameter(torch.zeros(len(of_teacher)))

    @property
    def parts(self) -> frozenset[Part]:
        """Which tensors of both models' forward passes are needed."""
        return frozenset(term.part for term in self.terms)

    def forward(
        self,
        student: ForwardOutputs,
        teacher: ForwardOutputs,
        positions: TokenPositions,
        response: Tensor | float,
    ) -> Tensor:
        """Return the weighted loss of each selected token and feature term, (N, F).

        Args:
            student: outputs of its forward pass; differentiable.
            teacher: outputs of its forward pass.
            positions: of the selected tokens.
            response: mean loss a token of the response terms, for the terms that balance.
        """
        losses = []
        for number, term in enumerate(self.terms):
            layers = self._compare_layers(number, term, student, teacher, positions)
            loss_N = torch.stack(layers).mean(0)
            if term.balance:
                # detached: the ratio scales the gradient and has none itself
                loss_N = loss_N * (response / loss_N.detach().mean().clamp_min(1e-12))
            losses.append(term.weight * loss_N)
        return torch.stack(losses, -1)

    def _compare_layers(
        self,
        number: int,
        term: Feature,
        student: ForwardOutputs,
        teacher: ForwardOutputs,
        positions: TokenPositions,
    ) -> list[Tensor]:
        """Return the loss of each pair of layers, (N,) each."""
        # hidden states begin with the embeddings, maps and values with the first block
        first = 0 if term.part == "hidden" else 1
        student_layers, teacher_layers = getattr(student, term.part), getattr(teacher, term.part)
        losses = []
        for layer, of_teacher in self.pairs[number]:
            name = _pair_name(number, layer, of_teacher)
            x, target = student_layers[layer - first], teacher_layers[of_teacher[0] - first]
            if name in self.projections:
                x = self.projections[name](x)
            if name in self.mixes:
                stacked = torch.stack([teacher_layers[n - first].float() for n in of_teacher], -1)
                # (…, layers) times a weight a layer: the mean of the teacher's layers
                target = stacked @ self.mixes[name].softmax(-1)
            losses.append(term.compare(x, target, positions))
        return losses

    def report(self) -> dict[str, Any]:
        """Return the learned weights of the teacher's layers (`layers: learned`)."""
        return {
            f"{self.terms[int(name.partition('-')[0])].type} of layer {name.split('-')[1]}": [
                round(share, 4) for share in mix.softmax(-1).tolist()
            ]
            for name, mix in self.mixes.items()
        }


def layer_pairs(layers: LayerMap, student: int, teacher: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return pairs of a student's layer and the teacher's layers that it is compared with.

    Args:
        layers: how they are mapped (`Feature.layers`).
        student: number of blocks of the student.
        teacher: number of blocks of the teacher.

    Raises:
        UserError: a layer does not exist, or the teacher has fewer blocks than the map needs.
    """
    blocks = range(1, student + 1)
    if layers == "uniform":
        # ⌈n · teacher / student⌉: the last block with the last
        return [(n, (-(-n * teacher // student),)) for n in blocks]
    if layers == "last":
        return [(student, (teacher,))]
    if layers == "learned":
        return [(n, tuple(range(1, teacher + 1))) for n in blocks]
    if layers == "top":
        if teacher < student:
            raise UserError(
                f"layers: top needs a teacher of {student} blocks, this one has {teacher}",
                where="terms",
                fix="layers: uniform",
            )
        return [(n, (teacher - student + n,)) for n in blocks]  # the highest with the highest
    for of_student, of_teacher in layers:
        if not (0 <= of_student <= student and 0 <= of_teacher <= teacher):
            raise UserError(
                f"no such pair of layers: [{of_student}, {of_teacher}]",
                where=f"the student has {student} blocks, the teacher {teacher}",
                fix="layers: uniform, or pairs [student, teacher] of layers that exist",
            )
    return [(int(of_student), (int(of_teacher),)) for of_student, of_teacher in layers]


def _pair_name(term: int, layer: int, of_teacher: Sequence[int]) -> str:
    return f"{term}-{layer}-{'-'.join(map(str, of_teacher))}"


def _linear(width: int, to: int, rng: torch.Generator) -> nn.Linear:
    linear = nn.Linear(width, to, bias=False)
    with torch.no_grad():
        # keeps the variance of the hidden states
        linear.weight.normal_(0, width**-0.5, generator=rng)
    return linear
