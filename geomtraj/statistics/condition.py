"""The largest over the median |eigenvalue| of the Hessian and of its blocks, which R_med stands in for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from geomtraj.linalg.magnitudes import Bounded, Magnitudes, magnitudes
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.r_med import ALL
from geomtraj.status import Code, Remark, Status


@dataclass(frozen=True)
class Condition(Statistic):
    """max |lambda| / median |lambda| of each weight matrix's part of the Hessian, by block name, and of all ("all").

    Infinite where the median is zero to rounding. Where it is zero or not resolved the interval has no upper end, and
    the lower end still says that the ratio is at least that. The details hold, by label, "lambda_max", "median",
    "ninth" (largest over the 0.9 quantile of |lambda|, which is resolved where the median is not), "outliers" and
    "negative" as [value, low, high], and "nodes" and "weights" of the density.

    Attributes:
        steps: Lanczos steps at first.
        max_steps: Lanczos steps at most, for blocks whose median is not resolved; the whole has too many eigenvalues
            near zero for that to help.
        probes: Random starts.
        dense: Blocks of at most this many entries are taken from all their eigenvalues.
        vectors: Whether blocks of vectors (biases, norms) are measured too.
        seed: Of the starts.
    """

    name = "condition"
    title = "largest over median |eigenvalue|"

    steps: int = 128
    max_steps: int = 512
    probes: int = 2
    dense: int = 256
    vectors: bool = False
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The ratio of each block and of the whole."""
        H, quantities, details, remarks, spent = point.hessian, {}, {}, list[Remark](), 0
        unused = set(point.problem.unused)
        names = [name for name, block in H.blocks.items() if self.vectors or block.kind != "vector"]
        for label in [*names, ALL]:
            if label != ALL and unused.issuperset(H.blocks[label].parameters):
                remarks.append(Remark(Code.LEFT_OUT, f"{label}: the loss does not depend on it", label))
                continue
            part = H if label == ALL else H.block(label)
            most = self.steps if label == ALL else self.max_steps
            found = magnitudes(part, self.steps, self.probes, most, self.dense, self.seed)
            quantities[label], details[label] = ratio(found.largest, found.median), _details(found)
            spent += found.matvecs
            remarks += Status.read(found.status).under(label).remarks
        return Outcome(quantities, details, Status(remarks), spent)


def ratio(above: Bounded, below: Bounded) -> Quantity:
    """Quotient of two numbers that are not negative; infinite over zero, NaN for zero over zero."""

    def over(a: float, b: float) -> float:
        return a / b if b else (math.inf if a else math.nan)

    return Quantity(over(above.value, below.value), over(above.low, below.high), over(above.high, below.low))


def _details(found: Magnitudes) -> dict[str, Any]:
    ninth = ratio(found.largest, found.ninth)
    return {
        "lambda_max": list(found.largest),
        "median": list(found.median),
        "ninth": [ninth.value, ninth.low, ninth.high],
        "outliers": list(found.outliers),
        "negative": list(found.negative),
        "nodes": [nodes.tolist() for nodes in found.nodes],
        "weights": [(weights / len(found.weights)).tolist() for weights in found.weights],
        "exact": found.exact,
        "status": found.status,
    }
