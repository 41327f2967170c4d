"""Units around each weight matrix: how uneven their second moments are, and how many are close to dead."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from geomtraj.blocks import Block
from geomtraj.layout import Layout
from geomtraj.linalg.chunks import at_least
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic
from geomtraj.statistics.kfac.factors import KfacFactors, WeightFactors, kfac_factors
from geomtraj.statistics.uniformity import max_over_median
from geomtraj.status import Code, Remark, Status


def near_dead(moments: Tensor, share: float) -> Tensor:
    """Which units are close to dead (n,): second moment at most `share` times the median of those that are not 0."""
    alive = moments[moments > 0]
    return moments <= share * (float(alive.quantile(0.5)) if alive.numel() else 0.0)


@dataclass(frozen=True)
class Units(Statistic):
    """R_med of K-FAC's diagonal, E[x_j^2] E[g_i^2], for each block of a weight matrix; its factors are details.

    x is what comes in, g the gradient by what comes out (see `kfac_factors`). Details by block: "input" and
    "output", max over median of the two moments, whose product is the value up to the median of a product ("combined" =
    value / (input * output)); "dead_inputs" and "dead_outputs", fractions of units with a second moment of at most
    `dead` times the median of those that are not 0, on the input side of their activation, on the output side of the
    gradient before the activation; "live", the value over the entries between units that are not near-dead;
    "frequency", max over median of how often a row is looked up (a table) or of its mean predicted probability (what
    the softmax is taken of). NaN where there is no such thing, as for the sides of a weight that is used in two
    ways, or of a block that is not rows and columns of one.

    The interval is that of the random vectors (jackknife): there is none for the batches, which are the loss.

    Source: Martens, Grosse (2015), "Optimizing neural networks with Kronecker-factored approximate curvature", ICML.
    """

    name = "units"
    title = "unevenness of units' second moments"

    samples: int = 8
    dead: float = 0.01
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """One quantity for each weight matrix."""
        at_least("samples", self.samples, 2)
        moments = kfac_factors(point.problem, point.theta, self.samples, self.seed)
        quantities, details = {}, {}
        remarks = [Remark(Code.LEFT_OUT, f"{name} is left out: {why}", name) for name, why in moments.left_out.items()]
        for name, block in point.problem.blocks.items():
            known = [parameter in moments.parts for parameter in block.parameters]
            if all(known):
                quantities[name], details[name] = _described(moments, block, point.problem.layout, self.dead)
            elif any(known):
                remarks.append(Remark(Code.LEFT_OUT, f"{name} is left out: not all of it are weight matrices", name))
        if moments.fallback:
            text = "the curvature of the loss by the output is not known: gradients of the losses were taken"
            remarks.append(Remark(Code.REPLACED, text))
        flat = [name for name, quantity in quantities.items() if math.isnan(quantity.value)]
        for name in flat:
            remarks.append(Remark(Code.LEFT_OUT, f"{name}: all second moments are zero or not finite: no ratio", name))
        if not quantities:
            remarks.append(Remark(Code.LEFT_OUT, "no weight matrix was found"))
        return Outcome(quantities, details, Status(remarks))


def _described(moments: KfacFactors, block: Block, layout: Layout, share: float) -> tuple[Quantity, dict[str, Any]]:
    own = layout.subset(block.parameters)
    block = block.within(own)
    each = block.take(torch.cat([moments.diagonal(name, slot.size) for name, slot in own.items()], 1))
    quantity = _jackknife(each, max_over_median)
    parts = [part for name in own for part in moments.parts[name]]
    details: dict[str, Any] = {"kind": " and ".join(dict.fromkeys(p.kind for p in parts)), "value": quantity.value}
    details |= dict.fromkeys(
        ("input", "output", "combined", "dead_inputs", "dead_outputs", "live", "frequency"), math.nan
    )
    part = parts[0] if block.whole else _within(parts[0], block.indices, own.size)
    if len(parts) == 1 and part is not None:
        details |= _sides(part, quantity.value, share)
    return quantity, details


def _within(part: WeightFactors, places: Tensor, size: int) -> WeightFactors | None:
    """The inputs and outputs of some entries of a matrix or table; None where these are no rows and columns of it."""
    chosen = torch.zeros(size, dtype=torch.bool, device=part.index.device)
    chosen[places.to(chosen.device)] = True
    inside = chosen[part.index]  # (groups, outputs, inputs)
    if len(inside) != 1:
        return None
    rows, columns = inside[0].any(1), inside[0].any(0)
    if not torch.equal(inside[0], rows[:, None] & columns):
        return None
    return WeightFactors(
        part.kind,
        part.index[:, rows][:, :, columns],
        part.inputs[:, columns],
        part.positions,
        part.gradients[:, :, rows],
        None if part.probability is None else part.probability[rows],
    )


def _sides(part: WeightFactors, value: float, share: float) -> dict[str, float]:
    x, g = part.moments, part.gradients.mean(0)  # (groups, inputs), (groups, outputs)
    idle, dead = near_dead(x, share), near_dead(g, share)
    entries = (g.unsqueeze(-1) * x.unsqueeze(-2))[~(dead.unsqueeze(-1) | idle.unsqueeze(-2))]
    found = {"input": max_over_median(x), "output": max_over_median(g)}
    product = found["input"] * found["output"]
    found |= {
        "combined": value / product if math.isfinite(product) and product else math.nan,
        "dead_inputs": float(idle.double().mean()),
        "dead_outputs": float(dead.double().mean()),
        "live": max_over_median(entries),
    }
    if part.kind == "table":
        found["frequency"] = found["input"]
    elif part.probability is not None:
        found["frequency"] = max_over_median(part.probability)
    return found


def _jackknife(each: Tensor, statistic: Callable[[Tensor], float]) -> Quantity:
    """A positive statistic of the mean over samples (S, n), with the t-interval of its log by leaving one out."""
    count, total = len(each), each.sum(0)
    value = statistic(total / count)
    if count < 2 or not (math.isfinite(value) and value > 0):
        return Quantity(value)
    left = torch.tensor([math.log(statistic((total - one) / (count - 1))) for one in each], dtype=torch.float64)
    sem = math.sqrt((count - 1) / count * float((left - left.mean()).square().sum()))
    half = float(stats.t.ppf(0.975, count - 1)) * sem
    return Quantity(value, value * math.exp(-half), value * math.exp(half))
