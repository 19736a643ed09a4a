"""The loss of early exits: one forward pass, the shared head after several depths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cohobate.errors import UserError
from cohobate.fast.forward_pass import forward
from cohobate.losses.divergences import Hard, Term
from cohobate.losses.fused_head import fused_head_loss
from cohobate.losses.live_teacher import LiveTeacher
from cohobate.losses.targets import Targets
from cohobate.models.layers import body_of
from cohobate.training.history import term_names
from cohobate.training.model_loss import ModelLoss


class EarlyExitLoss(ModelLoss):
    """A causal LM, the loss of each exit, and that of the whole model.

    The whole model has the hard terms alone. Each exit has all terms; its soft targets are the
    whole model's distributions, which get no gradient from them (Zhang et al. 2019, section 3.1).

    `exits` are numbers of blocks after which the last norm and the head read; the other arguments
    are those of `CausalLMLoss`.

    Raises:
        UserError: it is not known which module is the last norm.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        exits: Sequence[int],
        terms: Sequence[Term],
        *,
        chunk_tokens: int = 512,
        vocabulary: int | None = None,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.exits, self.terms = model, tuple(exits), tuple(terms)
        self.chunk_tokens, self.vocabulary, self.compiled = chunk_tokens, vocabulary, compiled
        # by name: as a submodule of the loss its weight would be there twice
        self._norm_name = _name_of_last_norm(model)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The model."""
        return [self.model]

    @property
    def names(self) -> list[str]:
        """Columns of the history: the terms of each exit, then the whole model's."""
        hard = [term for term in self.terms if isinstance(term, Hard)]
        of_exits = [f"{name}_at_{n}" for n in self.exits for name in term_names(self.terms)]
        return of_exits + term_names(hard)

    def forward(
        self,
        *,
        ids_BS: Tensor,
        positions_N: Tensor,
        labels_N: Tensor,
        divisor: float | Tensor,
        weight_N: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of all exits and the whole model, and its terms at each token, (N, F)."""
        outputs = forward(self.model, ids_BS, positions_N, frozenset({"hidden"}))
        last_ND, head = outputs.last_hidden_ND, self.head_of(self.model, self.vocabulary)
        norm = getattr(body_of(self.model), self._norm_name)
        device = last_ND.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else last_ND.dtype
        # detached: the whole model is not trained to be easy to imitate
        teacher = LiveTeacher(last_ND.detach().to(dtype), head)
        hard = [term for term in self.terms if isinstance(term, Hard)]
        targets = Targets(labels_N, weight_N=weight_N)
        settings: dict[str, Any] = {
            "divisor": divisor,
            "chunk_tokens": self.chunk_tokens,
            "compiled": self.compiled,
        }
        results: list[tuple[Tensor, Tensor]] = []
        # hidden[n] is what n blocks give
        for hidden_BSD in (outputs.hidden[n] for n in self.exits):
            exit_ND = norm(hidden_BSD.flatten(0, 1)[positions_N])
            part = targets._replace(teacher=teacher)
            results.append(fused_head_loss(exit_ND, head, self.terms, part, **settings))
        results.append(fused_head_loss(last_ND, head, hard, targets, **settings))
        total = torch.stack([loss for loss, _ in results]).sum()
        return total, torch.cat([losses_NF for _, losses_NF in results], -1)


def _name_of_last_norm(model: PreTrainedModel) -> str:
    """Return the name by which a body has the norm behind its last block."""
    width = model.config.get_text_config().hidden_size

    def is_norm(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return isinstance(weight, Tensor) and weight.shape == (width,)

    names = [name for name, child in body_of(model).named_children() if is_norm(child)]
    if len(names) != 1:
        raise UserError(
            f"cannot tell which module of {type(model).__name__} is its last norm",
            where="method: early_exit",
            fix="method: mutual, with peers of fewer layers",
        )
    return str(names[0])
