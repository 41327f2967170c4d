"""The two-layer linear network, whose Hessian diagonal is known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from geomtraj.errors import InputError
from geomtraj.seeding import generator
from geomtraj.tasks.base import Task

WINDOW = (0.9, 0.01)
"""The loss over that of the start, from and to which the theorem's statements are read: after a rank-one mode has come
to dominate the weights, which the loss hardly shows, until the loss is small. The two numbers are this project's."""


def scaled_squares(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """d/2 times the squared residual of each example, shape (d,): their mean is 1/2 ||W2 W1 - A||^2."""
    inputs, targets = batch
    return inputs.shape[1] / 2 * (model(inputs) - targets).square().squeeze(1)


def closed_form_diagonal(W1: Tensor, W2: Tensor) -> tuple[Tensor, Tensor]:
    """The Hessian diagonal of 1/2 ||W2 W1 - A||^2 in the shapes of W1 (d, d) and W2 (1, d).

    The second derivative in W1[i, j] is W2[i]^2, the one in W2[i] is ||W1[i, :]||^2; A does not matter.
    """
    return W2.square().reshape(-1, 1).expand_as(W1).clone(), W1.square().sum(dim=1).reshape(W2.shape)


def closed_form_r_med(W1: Tensor, W2: Tensor) -> tuple[float, float]:
    """R_med of W1 (d, d) and of W2 (1, d): max / median of W2[i]^2, and of ||W1[i, :]||^2."""
    return max_over_median(W2.square().flatten()), max_over_median(W1.square().sum(dim=1))


def max_over_median(x: Tensor) -> float:
    """The largest over the median entry of x (n,), the median being the mean of the two middle ones for even n."""
    return float(x.max() / x.double().quantile(0.5))


def direct_loss(W1: Tensor, W2: Tensor, A: Tensor) -> Tensor:
    """1/2 ||W2 W1 - A||^2, 0-d, for O(d^2) operations; the task's mean over d unit vectors takes O(d^3)."""
    return 0.5 * (W2 @ W1 - A).square().sum()


def learning_rate_unit(d: int) -> float:
    """1 / sqrt(d), the scale of learning rates at which both optimizers need about as many steps at every d.

    A is of norm sqrt(d) or so. Gradient descent's rank-one mode grows at the rate lr ||A||, and the curvature where it
    ends is about 2 ||A||; Adam's weights of size d^(-1/2) are that many steps of lr away.
    """
    return d**-0.5


def start_std(d: int, alpha: float) -> float:
    """d^(-2 alpha), the standard deviation of the start's weights."""
    return d ** (-2 * alpha)


def singular_value_ratio(W: Tensor) -> float:
    """The second over the first singular value of a matrix, a pure number: 0 for rank one."""
    values = torch.linalg.svdvals(W.detach())
    return float(values[1] / values[0])


def sgdm_r_med(W1: Tensor, W2: Tensor, A: Tensor) -> float:
    """R_med of both layers that gradient descent, with momentum or not, carries from this small start to the end.

    Near 0 the dynamics are linear. The combination u = W2^T + W1 A^T / ||A|| grows, the difference of the two decays,
    and every entry of u grows by the same factor, so that max u^2 / median u^2 stays what it is at the start; once the
    weights are of rank one, W1 = p u A and W2 = q u^T, they stay on that ray.
    """
    return max_over_median((W2.flatten() + (W1 @ A.T).flatten() / A.norm()).square())


def adam_r_med(W2: Tensor, A: Tensor, fraction: float) -> float:
    """R_med of W1 when Adam has brought the loss to `fraction` of the start's, as the learning rate goes to 0.

    Adam's first steps are signs, so that every |weight| grows by the same amount T: |W2[i]| is T plus its start, and
    W2 W1 is about d T^2 sign(A). NaN once d T^2 has passed the smallest |A[j]|, where signs begin to turn round. To
    leading order only: with a learning rate of a tenth of the start's standard deviation at d = 64, Adam's R_med - 1 is
    0.95 to 1.21 times this one's (the 3 seeds of tests/tasks/test_two_layer_linear.py).

    Args:
        W2: Of the start, (1, d).
        A: The regression row, (1, d).
        fraction: Loss over the loss of the start, between 0 and 1.
    """
    size, power = A.abs().mean(), A.square().mean()
    below = size**2 - power * (1 - fraction)
    reached = size - below.clamp(min=0).sqrt()
    if below < 0 or reached > A.abs().min():
        return math.nan
    grown = (reached / A.numel()).sqrt()
    return max_over_median((grown + W2.abs().flatten()).square())


@dataclass(frozen=True)
class GaussianRMed:
    """The law of max u^2 / median u^2 over d independent standard normal u, a pure number.

    Attributes:
        mean: Its mean.
        low: 2.5 % quantile.
        high: 97.5 % quantile.
    """

    mean: float
    low: float
    high: float


def gaussian_r_med(d: int, draws: int = 20_000) -> GaussianRMed:
    """The law of max u^2 / median u^2 at finite d, from draws; the mean's standard error is 1 % at d = 8, then less.

    The formula of `predicted_r_med` is its mean as d grows: it divides by the median of chi^2, while the median of d
    numbers varies, and so lies below the mean at small d.

    Raises:
        InputError: d is below 2.
    """
    _check_dimension(d)
    rng = generator(0, f"max over median of {d} squares")
    ratios = []
    chunk = max(1, 2**21 // d)
    for start in range(0, draws, chunk):
        squares = torch.randn(min(chunk, draws - start), d, generator=rng, dtype=torch.float64).square()
        ratios.append(squares.max(dim=1).values / squares.quantile(0.5, dim=1))
    law = torch.cat(ratios)
    low, high = torch.quantile(law, torch.tensor([0.025, 0.975], dtype=law.dtype)).tolist()
    return GaussianRMed(law.mean().item(), low, high)


def predicted_r_med(d: int) -> float:
    """R_med, a pure number, that SGD with momentum reaches from a small Gaussian start: max u^2 / median u^2.

    Extreme value theory for d standard normal u: the expected maximum of u^2 over the median of chi^2 with one
    degree of freedom, 0.4549. Adam's R_med goes to 1 instead. `gaussian_r_med` has the whole law at finite d.

    Raises:
        InputError: d is below 2.

    Source: arXiv 2211.02254, section on two-layer linear networks.
    """
    _check_dimension(d)
    return (2 * math.log(d) - math.log(math.log(d)) - math.log(math.pi) + 1.154) / 0.4549


def _check_dimension(d: int) -> None:
    if d < 2:
        raise InputError(f"d is {d}: R_med compares entries with each other, so give at least 2.")


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
        return TwoLayerLinearNetwork(self.options["d"], start_std(self.options["d"], self.options["alpha"]))

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
