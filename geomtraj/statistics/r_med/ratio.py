"""R_med, the median condition ratio max|diag H| / median|diag H| of each parameter tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geomtraj.diagonal import Diagonal, diagonal
from geomtraj.diagonal.exact import entries as exact_entries
from geomtraj.errors import InputError
from geomtraj.isolation import in_plain_torch
from geomtraj.layout import Layout
from geomtraj.linalg.chunks import at_least
from geomtraj.operators import Hessian, SymmetricOperator
from geomtraj.problem import Problem
from geomtraj.statistics.base import WAY, Outcome, Point, Quantity, Statistic
from geomtraj.statistics.r_med.interval import Ratios, over
from geomtraj.statistics.r_med.refine import Refinement

ALL = "all"
MEDIAN_GAP = 0.10
BUDGET = 4
"""Products that may be spent on exact entries, in units of `samples`."""
UNCORRELATED = ("hutchinson", "xdiag")
"""Methods whose errors are nearly independent within a row of a weight."""


@dataclass(frozen=True)
class RMed:
    """R_med = max|d| / median|d| of the entries d of one block of the Hessian diagonal.

    Attributes:
        value: R_med over all entries; inf when the median is zero, NaN when an entry is not finite.
        low: Lower end of the 95 % interval; equals `value` where all entries are exact.
        high: Upper end; inf where the estimate is too noisy to tell the median from zero.
        max: max|d|; exact where a product confirmed it, else given the noise.
        median: median|d|, the mean of the two middle values, given the noise where there is any.
        zeros: Number of entries that are exactly zero.
        size: Number of entries.
        method: How the diagonal was made, and how many of the block's entries were then measured exactly.
        nonzero: R_med over the entries that are not exactly zero.
        tenth: 10th largest |d| over the median, a steadier variant; NaN with fewer than 10 entries.
        q99: 0.99 quantile of |d| over the median.
        status: "ok", or what makes the number missing or doubtful; behind a semicolon what the diagonal's status says
            of this block, such as "ok; w: probed in parameter space".
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


@in_plain_torch
def r_med(
    problem: Problem | SymmetricOperator | Diagonal,
    method: str = "auto",
    seed: int = 0,
    theta: Tensor | None = None,
    *,
    samples: int = 64,
    rtol: float = 0.1,
    max_matvecs: int | None = None,
) -> dict[str, RMed]:
    """R_med of each block, and of all parameters together under the key "all".

    The diagonal comes with standard errors, and noise raises max|d| and shifts median|d|. Value and interval are
    therefore those of the entries given their estimates, by empirical Bayes (see `posterior.draws`), and exact
    entries, at one product each, are measured where an interval is wider than `rtol`: blocks of up to 32 entries as a
    whole, in the others those that may be the largest or, if the median is the less certain, a sample of those whose
    side of the median is in doubt. Errors follow Student's t with the diagonal's `dof`, normal where it has none.

    Coverage of the intervals that are not exact already, over 24 seeds on five small models at 4 and 16 probes: 98.1
    % of 1201, 97 to 100 % on each; without products 98.1 % of 1488, 94 to 100 % on each (`python
    benchmarks/calibration.py --seeds 24`). A small block whose entries leave a gap at the median may be held less
    often. Where noise is far larger than the median the value is little more than a guess, and mostly there is no
    upper end.

    Args:
        problem: A `Problem`, an operator, or a `Diagonal` that is there already: then nothing more can be measured
            and the interval follows from its standard errors.
        method: Method of `gt.diagonal`.
        seed: Seed of a randomised method and of the sample.
        theta: Where to measure (P,); the problem's current parameters if left out.
        samples: Products of a randomised method.
        rtol: Width high / low - 1 at which an interval is narrow enough.
        max_matvecs: Products to spend on exact entries at most, beyond those of the diagonal; 4 `samples` if left
            out. With 0 the intervals follow from the standard errors alone.

    Returns:
        Block name -> `RMed`, and "all" -> `RMed`. Its status says where the budget ended before `rtol` was reached.

    Raises:
        InputError: As `gt.diagonal`; or `theta` given together with a `Diagonal`; or `rtol` or `max_matvecs` is
            negative.

    Source: Jiang, Malik, Li (2023), "How does adaptive optimization impact local neural network geometry?",
        arXiv 2211.02254, section 2.
    """
    budget = BUDGET * samples if max_matvecs is None else at_least("max_matvecs", max_matvecs, 0)
    if not rtol >= 0:
        raise InputError(f"rtol is {rtol!r}: it is a relative width, such as 0.1.")
    if not isinstance(problem, Diagonal):
        return _measured(problem, method, seed, theta, samples, rtol, budget)[0]
    if theta is not None:
        raise InputError("theta cannot be given together with a Diagonal, which was taken somewhere already.")
    return _ratios(_refinement(problem, None, 0, rtol, seed), problem)


def _measured(
    problem: Problem | SymmetricOperator,
    method: str,
    seed: int,
    theta: Tensor | None,
    samples: int,
    rtol: float,
    budget: int,
    hessian: SymmetricOperator | None = None,
) -> tuple[dict[str, RMed], int]:
    """R_med by label, and the products that it took."""
    found = diagonal(problem, method=method, samples=samples, seed=seed, theta=theta)
    operator = problem if isinstance(problem, SymmetricOperator) else hessian

    def measure(indices: np.ndarray) -> np.ndarray:
        nonlocal operator
        if operator is None:
            assert isinstance(problem, Problem)
            operator = Hessian(problem, theta, WAY)
        return exact_entries(operator, torch.from_numpy(indices)).double().cpu().numpy()

    refinement = _refinement(found, measure, budget, rtol, seed)
    refinement.run()
    return _ratios(refinement, found), found.cost.matvecs + refinement.spent


def _refinement(found: Diagonal, measure: Any, budget: int, rtol: float, seed: int) -> Refinement:
    values, sem = found.values.double().cpu().numpy(), found.sem.double().cpu().numpy()
    rounding = 4 * torch.finfo(found.values.dtype).eps * np.abs(values)
    sem = np.where(sem <= rounding, 0.0, sem)
    dof = None if found.dof is None else found.dof.double().cpu().numpy()
    labels = {name: slot.slice for name, slot in found.blocks.items()} | {ALL: slice(0, values.size)}
    rows = np.arange(values.size) if found.method in UNCORRELATED else _rows(found.blocks)
    return Refinement(values, sem, rows, labels, measure, budget, rtol, seed, dof)


def _rows(blocks: Layout) -> np.ndarray:
    """A number for the row (index of the first axis) of each entry (P,); entries of a vector are rows of their own."""
    rows, first = [np.empty(0, dtype=int)], 0
    for slot in blocks.values():
        count = slot.size if len(slot.shape) < 2 else max(slot.shape[0], 1)
        rows.append(first + np.arange(slot.size) // max(slot.size // max(count, 1), 1))
        first += count
    return np.concatenate(rows)


def _ratios(refinement: Refinement, found: Diagonal) -> dict[str, RMed]:
    notes = _notes(found)
    return {label: _ratio(refinement, label, found.method, notes.get(label, "")) for label in refinement.labels}


def _notes(found: Diagonal) -> dict[str, str]:
    """What the diagonal's status says of each label; entries that are not finite are counted anew."""
    own: dict[str, list[str]] = {label: [] for label in [*found.blocks, ALL]}
    for remark in found.status.split("; "):
        name = remark.split(": ")[0]
        if remark == "ok" or remark.endswith(" are not finite"):
            continue
        for label in (name, ALL) if name in found.blocks else own:
            own[label].append(remark)
    return {label: "; ".join(remarks) for label, remarks in own.items()}


def _ratio(refinement: Refinement, label: str, method: str, note: str) -> RMed:
    own = refinement.entries.take(refinement.labels[label])
    best, size = own.best, own.values.size
    zeros = int(((best == 0) & ~(own.errors > 0)).sum())
    measured = int((~np.isnan(own.exact)).sum())
    how = f"{method}, {measured} of {size} entries exact" if measured else method
    bad = size - int(np.isfinite(best).sum())
    if bad:
        nan = math.nan
        reason = f"{bad} of {size} entries of the diagonal are not finite"
        return RMed(nan, nan, nan, nan, nan, zeros, size, how, nan, nan, nan, _joined(reason, note))
    found = refinement.of(label)
    entries = np.sort(np.abs(best))
    value, low, high = found.ratio
    status = _status(entries, zeros, bool(own.known.all()), low, high, refinement)
    return RMed(
        value=value,
        low=low,
        high=high,
        max=found.max,
        median=found.median,
        zeros=zeros,
        size=size,
        method=how,
        nonzero=_nonzero(entries, zeros, found),
        tenth=found.tenth,
        q99=found.q99,
        status=_joined(status, note),
    )


def _joined(status: str, note: str) -> str:
    return f"{status}; {note}" if note else status


def _nonzero(entries: np.ndarray, zeros: int, found: Ratios) -> float:
    if zeros == entries.size:
        return math.nan
    return over(found.max, float(np.median(entries[entries > 0])) if zeros else found.median)


def _status(entries: np.ndarray, zeros: int, exact: bool, low: float, high: float, refinement: Refinement) -> str:
    size = entries.size
    lower, upper = float(entries[(size - 1) // 2]), float(entries[size // 2])
    if zeros == size:
        return "all entries are exactly zero: the loss does not curve along this block"
    if upper == 0:
        return f"the median is zero: {zeros} of {size} entries are exactly zero"
    if exact and (lower == 0 or upper > (1 + MEDIAN_GAP) * lower):
        return (
            f"the lower and the upper median differ by more than {100 * MEDIAN_GAP:.0f} %: {lower:.3g} and {upper:.3g}"
        )
    spent = f" after {refinement.spent} of at most {refinement.budget} exact entries" if refinement.budget else ""
    if math.isinf(high):
        return f"too few samples to bound the median away from zero: no upper end{spent}"
    if refinement.budget and high > (1 + refinement.rtol) * low:
        return f"the interval is {100 * (high / low - 1):.0f} % wide, not {100 * refinement.rtol:.0f} %{spent}"
    return "ok"


@dataclass(frozen=True)
class MedianConditionRatio(Statistic):
    """R_med of each block and of all parameters: quantities by block name, and "all". Settings as for `gt.r_med`."""

    name = "r_med"
    title = "median condition ratio R_med"

    method: str = "auto"
    samples: int = 64
    seed: int = 0
    rtol: float = 0.1
    max_matvecs: int | None = None

    def measure(self, point: Point) -> Outcome:
        """R_med with its interval, and the other fields of `RMed` as details by label."""
        ratios, matvecs = _measured(
            point.problem,
            self.method,
            self.seed,
            point.theta,
            self.samples,
            self.rtol,
            BUDGET * self.samples if self.max_matvecs is None else self.max_matvecs,
            point.hessian,
        )
        return outcome_of(ratios, matvecs)


def outcome_of(ratios: dict[str, RMed], matvecs: int) -> Outcome:
    """R_med by label as a statistic's outcome; notes behind an "ok" stay in the details."""
    quantities = {label: Quantity(r.value, r.low, r.high) for label, r in ratios.items()}
    kept = [f.name for f in fields(RMed) if f.name not in ("value", "low", "high")]
    details: dict[str, Any] = {label: {k: asdict(r)[k] for k in kept} for label, r in ratios.items()}
    remarks = [f"{label}: {r.status}" for label, r in ratios.items() if r.status.split("; ")[0] != "ok"]
    return Outcome(quantities, details, "; ".join(remarks) or "ok", matvecs)
