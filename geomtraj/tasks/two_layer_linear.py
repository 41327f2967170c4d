"""The two-layer linear network, whose Hessian diagonal is known in closed form."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor, nn

from geomtraj.seeding import generator
from geomtraj.tasks.base import Task


def scaled_squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """d/2 times the squared residual of each example, shape (d,): their mean is 1/2 ||W2 W1 - A||^2."""
    inputs, targets = batch
    return inputs.shape[1] / 2 * (model(inputs) - targets).square().squeeze(1)


def closed_form_diagonal(W1: Tensor, W2: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian diagonal of 1/2 ||W2 W1 - A||^2 in the shapes of W1 (d, d) and W2 (1, d).

    The second derivative in W1[i, j] is W2[i]^2, the one in W2[i] is ||W1[i, :]||^2; A does not matter.
    """
    return W2.square().reshape(-1, 1).expand_as(W1).clone(), W1.square().sum(dim=1).reshape(W2.shape)


def predicted_r_med(d: int) -> float:
    """R_med, a pure number, that SGD with momentum reaches from a small Gaussian start: max u^2 / median u^2.

    Extreme value theory for d standard normal u: the expected maximum of u^2 over the median of chi^2 with one
    degree of freedom, 0.4549. Adam's R_med goes to 1 instead.

    Source: arXiv 2211.02254, section on two-layer linear networks.
    """
    return (2 * math.log(d) - math.log(math.log(d)) - math.log(math.pi) + 1.154) / 0.4549


class TwoLayerLinearNetwork(nn.Module):
    """x -> W2 W1 x with W1 (d, d) and W2 (1, d), no biases, Gaussian start of standard deviation `std`."""

    def __init__(self, d: int, std: float):
        super().__init__()
        self.W1 = nn.Linear(d, d, bias=False)
        self.W2 = nn.Linear(d, 1, bias=False)
        for layer in (self.W1, self.W2):
            nn.init.normal_(layer.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions, shape (B, 1), for inputs (B, d)."""
        return self.W2(self.W1(x))


class TwoLayerLinear(Task):
    """Full-batch regression on whitened inputs, L = 1/2 ||W2 W1 - A||^2, with |A_i| between 1/2 and 3/2.

    The d examples are the unit vectors, so that the mean of their losses is exactly L. The row A depends on d
    and target_seed alone.

    Options: d, alpha (the start's standard deviation is d^(-2 alpha)), target_seed, device, dtype.

    Source: arXiv 2211.02254, section on two-layer linear networks.
    """

    name = "two-layer-linear"
    defaults = {"d": 64, "alpha": 1.0, "target_seed": 0, "dtype": "float64"}  # noqa: RUF012
    default_steps = 300
    loss = staticmethod(scaled_squares)

    def build(self) -> nn.Module:
        """The network."""
        return TwoLayerLinearNetwork(self.options["d"], self.options["d"] ** (-2 * self.options["alpha"]))

    @cached_property
    def target(self) -> Tensor:
        """The regression row A, shape (1, d)."""
        rng = generator(self.options["target_seed"], "target of two-layer-linear")
        d = self.options["d"]
        size = 0.5 + torch.rand(d, generator=rng, dtype=torch.float64)
        sign = torch.randint(0, 2, (d,), generator=rng) * 2 - 1
        return (size * sign).reshape(1, d).to(device=self.device, dtype=self.dtype)

    def batch(self, step: int, seed: int) -> tuple[Tensor, Tensor]:
        """All examples, whatever step and seed: unit vectors (d, d) and targets (d, 1)."""
        return torch.eye(self.options["d"], dtype=self.dtype, device=self.device), self.target.T.contiguous()

    def evaluation(self) -> list[tuple[Tensor, Tensor]]:
        """The training examples."""
        return [self.batch(0, 0)]
