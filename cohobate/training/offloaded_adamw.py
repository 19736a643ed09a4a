"""AdamW whose moments stay in the host's memory, where the step is computed.

A GPU then holds weights and gradients alone (Ren et al. 2021, "ZeRO-Offload", section 4). For each
weight in turn its gradient and its values go to the host, and the new values come back: a step
takes longer, by what the bus takes for 12 bytes a trained weight. On a CPU it is AdamW itself.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from cohobate.training.hyperparameters import Hyperparameters


class OffloadedAdamW(torch.optim.Optimizer):
    """AdamW with moments on the host; of a sharded weight this worker's share."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update each weight that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        here = _share(weight)
        # on a CPU these are the tensors themselves
        host, gradient = here.cpu(), _share(weight.grad).cpu()
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(host)
            state["exp_avg_sq"] = torch.zeros_like(host)
        beta1, beta2 = group["betas"]
        adamw(
            [host],
            [gradient],
            [state["exp_avg"]],
            [state["exp_avg_sq"]],
            [],
            [state["step"]],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        if host is not here:
            here.copy_(host)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch's own would move the moments to the weights' device."""
        super().load_state_dict(state_dict | {"state": {}})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for number, moments in state_dict["state"].items():
            self.state[weights[number]] = {name: moment.cpu() for name, moment in moments.items()}


def is_offloaded(optimizer: Any) -> bool:
    """Say whether an optimizer, or the one that accelerate wraps, has its moments on the host."""
    return isinstance(getattr(optimizer, "optimizer", optimizer), OffloadedAdamW)


def offloaded(
    hyperparameters: Hyperparameters,
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Return what Trainer makes the optimizer of, where the phase has `adamw_offloaded`."""
    if hyperparameters.optimiser != "adamw_offloaded":
        return None
    chosen = {"lr": hyperparameters.learning_rate, "betas": hyperparameters.betas}
    return OffloadedAdamW, chosen


def _share(tensor: Any) -> Tensor:
    """Return what lies in this process of a tensor."""
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local
