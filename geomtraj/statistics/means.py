"""The mean of independent draws as a quantity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from geomtraj.statistics.base import Quantity


def mean_of(values: Sequence[float], *, of: int | None = None) -> Quantity:
    """The mean with its 95 % t-interval; without interval where there is one value.

    Args:
        values: Independent draws, (n,).
        of: Size of the finite population that they were drawn from without replacement; the whole of it has no error.
    """
    found = np.asarray(values, dtype=np.float64)
    mean, n = float(found.mean()), found.size
    if of is not None and n >= of:
        return Quantity.exact(mean)
    if n < 2:
        return Quantity(mean)
    left = 1.0 if of is None else max(1 - n / of, 0.0)
    half = float(stdtrit(n - 1, 0.975)) * float(found.std(ddof=1)) * (left / n) ** 0.5
    return Quantity(mean, mean - half, mean + half)
