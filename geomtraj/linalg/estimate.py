"""A number with its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A randomised estimate of one number.

    Attributes:
        value: The estimate.
        sem: Its standard error; NaN where one probe alone gives none.
        matvecs: Products with the operator that it took.
        status: "ok", or why the number or its error cannot be trusted.
    """

    value: float
    sem: float
    matvecs: int
    status: str = "ok"


def mean_of_probes(per_probe: Tensor, matvecs: int) -> Estimate:
    """The mean of independent unbiased estimates (S,), with std / sqrt(S) as its standard error."""
    per_probe = per_probe.to(torch.float64)
    count = per_probe.numel()
    value = float(per_probe.mean())
    sem = float(per_probe.std() / count**0.5) if count > 1 else math.nan
    status = "ok"
    if not math.isfinite(value):
        bad = int((~torch.isfinite(per_probe)).sum())
        status = f"{bad} of {count} probes met a non-finite product with the operator"
    elif count == 1:
        status = "one probe gives no standard error: use at least two"
    return Estimate(value, sem, matvecs, status)
