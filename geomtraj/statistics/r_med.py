"""R_med, the median condition ratio max|diag H| / median|diag H| of each parameter tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy.special import ndtri
from torch import Tensor

from geomtraj.diagonal import Diagonal, diagonal
from geomtraj.errors import InputError
from geomtraj.operators import SymmetricOperator
from geomtraj.problem import Problem
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic

ALL = "all"
MEDIAN_GAP = 0.10


@dataclass(frozen=True)
class RMed:
    """R_med = max|d| / median|d| of the entries d of one block of the Hessian diagonal.

    Attributes:
        value: R_med over all entries; inf when the median is zero, NaN when an entry is not finite.
        low: Lower end of the 95 % interval; equals `value` for an exact diagonal.
        high: Upper end; inf where the estimate is too noisy to bound the median away from zero.
        max: max|d|.
        median: median|d|, the mean of the two middle values.
        zeros: Number of entries that are exactly zero.
        size: Number of entries.
        method: How the diagonal was made.
        nonzero: R_med over the entries that are not exactly zero.
        tenth: 10th largest |d| over the median, a steadier variant; NaN with fewer than 10 entries.
        q99: 0.99 quantile of |d| over the median.
        status: "ok", or what makes the number missing or doubtful.
    """

    value: float
    low: float
    high: float
    max: float
    median: float
    zeros: int
    size: int
    method: str
    nonzero: float
    tenth: float
    q99: float
    status: str = "ok"


def r_med(
    problem: Problem | SymmetricOperator | Diagonal,
    method: str = "auto",
    seed: int = 0,
    theta: Tensor | None = None,
    *,
    samples: int = 64,
) -> dict[str, RMed]:
    """R_med of each block, and of all parameters together under the key "all".

    The interval follows from the standard errors of the diagonal's entries: the maximum lies between the largest
    |d_i| - z s_i and the largest |d_i| + z s_i, with z for all entries at once; the median between quantiles of
    |d| -+ 1.96 s that leave room for the entries that miss. It is safe rather than sharp. Noise raises max|d| more
    than median|d|, so `value` reads high where the interval is wide.

    Args:
        problem: A `Problem`, an operator, or a `Diagonal` that is there already.
        method: Method of `gt.diagonal`.
        seed: Seed of a randomised method.
        theta: Where to measure (P,); the problem's current parameters if left out.
        samples: Products of a randomised method.

    Returns:
        Block name -> `RMed`, and "all" -> `RMed`.

    Raises:
        InputError: As `gt.diagonal`; or `theta` given together with a `Diagonal`.

    Source: Jiang, Malik, Li (2023), "How does adaptive optimization impact local neural network geometry?",
        arXiv 2211.02254, section 2.
    """
    if isinstance(problem, Diagonal):
        if theta is not None:
            raise InputError("theta cannot be given together with a Diagonal, which was taken somewhere already.")
        found = problem
    else:
        found = diagonal(problem, method=method, samples=samples, seed=seed, theta=theta)
    values, sem = found.values.double().cpu().numpy(), found.sem.double().cpu().numpy()
    ratios = {name: _ratio(values[s.slice], sem[s.slice], found.method) for name, s in found.blocks.items()}
    return ratios | {ALL: _ratio(values, sem, found.method)}


def _ratio(values: np.ndarray, sem: np.ndarray, method: str) -> RMed:
    size = values.size
    zeros = int(((values == 0) & ~(sem > 0)).sum())
    bad = size - int(np.isfinite(values).sum())
    if bad:
        nan = math.nan
        reason = f"{bad} of {size} entries of the diagonal are not finite"
        return RMed(nan, nan, nan, nan, nan, zeros, size, method, nan, nan, nan, reason)
    magnitudes = np.abs(values)
    entries = np.sort(magnitudes)
    biggest, median = float(entries[-1]), float(np.median(entries))
    ratio = _over(biggest, median)
    low, high = _interval(magnitudes, sem) if sem.any() else (ratio, ratio)
    return RMed(
        value=ratio,
        low=min(low, ratio),
        high=max(high, ratio),
        max=biggest,
        median=median,
        zeros=zeros,
        size=size,
        method=method,
        nonzero=_over(biggest, float(np.median(magnitudes[magnitudes > 0]))) if zeros < size else math.nan,
        tenth=_over(float(entries[-10]), median) if size >= 10 else math.nan,
        q99=_over(float(np.quantile(entries, 0.99)), median),
        status=_status(entries, zeros, high, noisy=bool(sem.any())),
    )


def _over(numerator: float, denominator: float) -> float:
    if denominator == 0:
        return math.inf if numerator > 0 else math.nan
    return numerator / denominator


def _interval(magnitudes: np.ndarray, sem: np.ndarray) -> tuple[float, float]:
    """Ends of the interval of max / median of |d|, from noisy |d| and their standard errors."""
    size = magnitudes.size
    if np.isnan(sem).any():
        return 1.0, math.inf
    z_all = float(ndtri(1 - 0.0125 / (2 * size)))
    smallest_max = float((magnitudes - z_all * sem).max())
    largest_max = float((magnitudes + z_all * sem).max())
    # The median lies between the medians of all entries' simultaneous bounds. Or, tighter where noise is large: of the
    # entries' own 95 % intervals 5 % miss, half on each side, give or take three binomial deviations.
    smallest_median = float(np.median(np.maximum(magnitudes - z_all * sem, 0)))
    largest_median = float(np.median(magnitudes + z_all * sem))
    missing = 0.025 + 3 * math.sqrt(0.025 * 0.975 / size)
    below = np.sort(np.maximum(magnitudes - 1.96 * sem, 0))
    above = np.sort(magnitudes + 1.96 * sem)
    low_rank = math.floor((0.5 - missing) * size) - 1
    high_rank = math.ceil((0.5 + missing) * size)
    if low_rank >= 0:
        smallest_median = max(smallest_median, float(below[low_rank]))
    if high_rank < size:
        largest_median = min(largest_median, float(above[high_rank]))
    return max(1.0, _over(smallest_max, largest_median)), _over(largest_max, smallest_median)


def _status(entries: np.ndarray, zeros: int, high: float, noisy: bool) -> str:
    size = entries.size
    lower, upper = float(entries[(size - 1) // 2]), float(entries[size // 2])
    if zeros == size:
        return "all entries are exactly zero: the loss does not curve along this block"
    if upper == 0:
        return f"the median is zero: {zeros} of {size} entries are exactly zero"
    if math.isinf(high):
        return "too few samples to bound the median away from zero: no upper end"
    if not noisy and (lower == 0 or upper > (1 + MEDIAN_GAP) * lower):
        return (
            f"the lower and the upper median differ by more than {100 * MEDIAN_GAP:.0f} %: {lower:.3g} and {upper:.3g}"
        )
    return "ok"


@dataclass(frozen=True)
class MedianConditionRatio(Statistic):
    """R_med of each block and of all parameters: quantities by block name, and "all"."""

    name = "r_med"
    title = "median condition ratio R_med"

    method: str = "auto"
    samples: int = 64
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """R_med with its interval, and the other fields of `RMed` as details by label."""
        return outcome_of(diagonal(point.problem, self.method, self.samples, self.seed, point.theta))


def outcome_of(found: Diagonal) -> Outcome:
    """R_med of a diagonal as a statistic's outcome."""
    ratios = r_med(found)
    quantities = {label: Quantity(r.value, r.low, r.high) for label, r in ratios.items()}
    kept = [f.name for f in fields(RMed) if f.name not in ("value", "low", "high")]
    details: dict[str, Any] = {label: {k: asdict(r)[k] for k in kept} for label, r in ratios.items()}
    remarks = [f"{label}: {r.status}" for label, r in ratios.items() if r.status != "ok"]
    return Outcome(quantities, details, "; ".join(remarks) or "ok", found.cost.matvecs)
