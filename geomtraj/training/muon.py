"""Muon for the hidden weight matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from geomtraj.errors import InputError


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon on matrices and AdamW on the rest, with one state_dict and one step.

    Group 0 belongs to Muon, group 1 to AdamW; state and groups are this optimizer's own, and each step lends them
    to the two. Muon's step is scaled to AdamW's size, so that one learning rate fits both.

    Args:
        matrices: Hidden weights, 2-D.
        rest: All other parameters.
        lr: Learning rate of both.
        momentum: Muon's momentum.
        betas: AdamW's averaging constants.
        weight_decay: Decoupled weight decay of both.
    """

    def __init__(
        self,
        matrices: list[Tensor],
        rest: list[Tensor],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.01,
    ):
        muon = torch.optim.Muon(
            matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        adamw = torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts: tuple[torch.optim.Optimizer, ...] = (muon, adamw)

    @classmethod
    def of_groups(cls, groups: list[list[Tensor]]) -> MuonWithAdamW:
        """The optimizer of these parameters, group by group; its settings come with the state that is loaded."""
        matrices, rest = groups
        return cls(matrices, rest, lr=1e-3)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss


def split_parameters(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """The model's trainable parameters: hidden weight matrices, and the rest.

    The rest is all that is not 2-D, embeddings, and the output layer (the last linear one).

    Raises:
        InputError: There is no hidden weight matrix, or nothing else.
    """
    apart = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if linear:
        apart.add(id(linear[-1].weight))
    trainable: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trainable if p.dim() == 2 and id(p) not in apart]
    rest = [p for p in trainable if p.dim() != 2 or id(p) in apart]
    if not matrices or not rest:
        raise InputError(
            "muon needs 2-D weights of hidden layers and an output layer: use adamw for a model without them."
        )
    return matrices, rest


def build(model: nn.Module, lr: float, **hyper: Any) -> MuonWithAdamW:
    """The optimizer of the model's trainable parameters; errors as for `split_parameters`."""
    return MuonWithAdamW(*split_parameters(model), lr=lr, **hyper)
