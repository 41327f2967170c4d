"""Which end of the spectrum is wanted: choosing, ordering and comparing eigenvalues."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ENDS = ("LA", "SA", "LM", "BE")
RESOLUTION = 2e-2
"""A missed eigenvalue counts from this fraction of the spectrum's width beyond the last wanted one."""
MISS_PROBABILITY = 1e-3


def best(values: Tensor, which: str, k: int) -> Tensor:
    """Indices of the k (or fewer) values that `which` prefers, most wanted first; of equal ones the earlier."""
    if which == "LA":
        order = torch.argsort(values, descending=True, stable=True)
    elif which == "SA":
        order = torch.argsort(values, stable=True)
    elif which == "LM":
        order = torch.argsort(values.abs(), descending=True, stable=True)
    else:
        down = torch.argsort(values, descending=True, stable=True)
        up = torch.argsort(values, stable=True)
        alternating = torch.stack([down, up], dim=1).reshape(-1).tolist()
        order = torch.tensor(list(dict.fromkeys(alternating)), dtype=torch.long)
    return order[:k]


def sort_for_output(values: Tensor, chosen: Tensor, which: str) -> Tensor:
    """The chosen indices in the order in which `eigsh` returns them."""
    order = best(values[chosen], "LA" if which == "BE" else which, chosen.numel())
    return chosen[order]


def worst_of(values: Tensor, which: str) -> tuple[float, float]:
    """The pair (low, high) that a further eigenvalue must lie below or above to displace one of these k values."""
    if which == "LA":
        return -math.inf, float(values.min())
    if which == "SA":
        return float(values.max()), math.inf
    if which == "LM":
        smallest = float(values.abs().min())
        return -smallest, smallest
    ordered = values.sort().values
    bottom = values.numel() // 2
    return (float(ordered[bottom - 1]) if bottom else -math.inf), float(ordered[bottom])


def better_than(values: Tensor, low: float, high: float, slack: Tensor) -> Tensor:
    """Which values lie beyond (low, high) by more than their slack: bool, of the shape of `values`."""
    return (values > high + slack) | (values < low - slack)


def nothing_better(ritz: Tensor, low: float, high: float, bottom: float, top: float, size: int, steps: int) -> bool:
    """Whether an eigenvalue clearly beyond (low, high) would have shown in `steps` Lanczos steps from a random start.

    With probability at most 1.648 sqrt(P) exp(-(2 steps - 1) sqrt(e)) the top Ritz value is still further below the
    top eigenvalue than e times the width of the spectrum. "Clearly" means by 2 % of the width, and the probability
    asked for is 0.001. The width is that of the Ritz values seen so far, [bottom, top].

    Source:
        Kuczynski and Wozniakowski 1992, theorem 4.2.
    """
    need = math.log(1.648 * math.sqrt(size) / MISS_PROBABILITY)
    width = max(top - bottom, 0.0)
    for edge, extreme, other in ((high, float(ritz.max()), bottom), (-low, -float(ritz.min()), -top)):
        if math.isinf(edge):
            continue
        edge = edge + RESOLUTION * width
        span = edge - other
        share = (edge - extreme) / span if span > 0 else 0.0
        if share <= 0 or (2 * steps - 1) * math.sqrt(min(share, 1.0)) < need:
            return False
    return True


def certain(size: int, steps: int, runs: int) -> bool:
    """Whether `runs` independent Lanczos runs of `steps` steps miss an eigenvalue only with the probability asked for.

    The eigenvalue lies 2 % of the width or more beyond what the runs show, as in `nothing_better`; each run adds its
    exponent.
    """
    need = math.log(1.648 * math.sqrt(size) / MISS_PROBABILITY)
    return runs * (2 * min(steps, size) - 1) * math.sqrt(RESOLUTION) >= need
