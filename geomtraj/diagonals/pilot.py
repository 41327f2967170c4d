"""A few probes of one example that tell how each parameter's residual part is best estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from geomtraj.diagonals.accumulators import Accumulator, MeanVariance, Parts
from geomtraj.diagonals.estimator import GraphEstimator, blocks
from geomtraj.diagonals.factored import Factored
from geomtraj.diagonals.parts import Choice, Key, key_of_part
from geomtraj.diagonals.products import Products
from geomtraj.layers.probe_groups import ProbeGroup
from geomtraj.layers.replay import Replay

PROBES = 2
"""Probes of the pilot, which the estimate does not use."""
TIMES = 2
"""How many times the samples factored second derivatives take."""
FACTORED, GAUSS_NEWTON, SIGNS = 8.0, 3.0, 4.0
"""Work of one sample, in forward passes: of the first two for all taps, and of signs at the first tap."""
SHARED = TIMES * (FACTORED + GAUSS_NEWTON)
WORSE = 3.0
"""What a variance may be of what signs at each tap give in the same time: two probes are not sure of it."""


@dataclass(frozen=True)
class Measured:
    """Variances of one sample of a part of a group of taps, zero where there is no such part.

    Attributes:
        taps: The taps of the group.
        signs: By signs at the taps.
        factored: Of the residual part by factored second derivatives; infinite where they are not possible.
        gauss_newton: Of the Gauss-Newton part.
        split: Whether signs are for the residual part alone, so that the Gauss-Newton part is added to them.
    """

    taps: tuple[int, ...]
    signs: float
    factored: float
    gauss_newton: float
    split: bool


class Spreads(Accumulator):
    """Sums of variances alone, by parameter."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}

    def add(self, name: str, index: Tensor | None, part: MeanVariance) -> None:
        """Add the variances of a part, those that are finite."""
        if part.variance is not None:
            self.found[name] = self.found.get(name, 0.0) + float(part.variance.nan_to_num(0, 0, 0).sum())


class Ways(NamedTuple):
    """How estimators are made for the groups of a graph.

    Attributes:
        signs: Of one group, and whether for the residual part alone.
        factored: Of all groups by factored second derivatives.
        gauss_newton: Of the Gauss-Newton part of all groups; None where that is exact.
    """

    signs: Callable[[ProbeGroup, bool], GraphEstimator]
    factored: Callable[[list[ProbeGroup]], Factored]
    gauss_newton: Callable[[list[ProbeGroup]], Products] | None


Pairs = list[tuple[ProbeGroup, bool]]
"""Groups, and whether signs there are for the residual part alone."""


def choose(sampled: Pairs, samples: int, ways: Ways) -> Choice | None:
    """The ways that together give the smallest errors for their time; None for signs at each tap alone.

    Variances are measured on the first example alone, whatever its batch; work is counted, not timed, so that the same
    problem is always treated alike.

    Args:
        sampled: The groups of the first batch that random vectors are drawn for.
        samples: How many are asked for.
        ways: How estimators are made.

    Raises:
        NotReplayed: It would be worth trying, but the operations of the forward pass are not all seen.
    """
    usable = [group for group, _ in sampled if not group.feeds_itself]
    if not usable or usable[0].graph.output_hessian is None or SIGNS * len(usable) / 2 < 2 * SHARED:
        return None
    graph = usable[0].graph
    first = graph.of_first_example()
    if first is None or first.output_hessian is None:
        return None
    replay = Replay(first)
    replay.check_product()
    by_signs = {tuple(group.taps): SIGNS * replay.share_after(group.taps) for group, _ in sampled}
    pilot = PROBES * (sum(by_signs.values()) + FACTORED + GAUSS_NEWTON) * replay.work(1) / replay.work(graph.examples)
    if pilot + samples * SHARED > samples * sum(by_signs.values()):
        return None
    alone = [(replace(group, graph=first), split) for group, split in sampled]
    return best(measure(alone, replay, ways), by_signs, samples)


def measure(sampled: Pairs, replay: Replay, ways: Ways) -> dict[Key, Measured]:
    """The variances of both ways, by keys of parts."""
    usable = [group for group, _ in sampled if not group.feeds_itself]
    factored = ways.factored(usable)
    factored.replay = replay
    together: list[Products] = [factored]
    if ways.gauss_newton is not None:
        together.append(ways.gauss_newton([group for group, _ in sampled]))
    for one in together:
        _take_probes(one)
    found: dict[Key, Measured] = {}
    for group, split in sampled:
        signs = ways.signs(group, split)
        _take_probes(signs)
        by_signs, by_products = Spreads(), [Spreads() for _ in range(2)]
        signs.add_to(Parts(by_signs, by_signs, by_signs))
        for one, spreads in zip(together, by_products, strict=False):
            one.add_group_to(group, spreads)
        possible = any(group is other for other in usable)
        for part in group.shared_entries:
            name = group.name_of(part)
            v = [PROBES * s.found.get(name, 0.0) for s in (by_signs, *by_products)]
            key, taps = key_of_part(group, part), tuple(group.taps)
            if key[1]:
                found[key] = Measured(taps, v[0], v[1] if possible else math.inf, v[2], split)
            else:
                old = found.get(key, Measured(taps, 0.0, 0.0, 0.0, split))
                found[key] = Measured(taps, old.signs + v[0], old.factored + v[1], old.gauss_newton + v[2], split)
    return found


def _take_probes(estimator: GraphEstimator) -> None:
    for block in blocks(PROBES, PROBES, -PROBES):
        estimator.take(block)


def best(measured: Mapping[Key, Measured], by_signs: Mapping[tuple[int, ...], float], samples: int) -> Choice | None:
    """The choice with the smallest mean of log variance times work, where none is `WORSE` than by signs alone.

    Signs take as long as factored second derivatives together at most, and fewer samples where that is too short, so
    that time is linear in depth.

    Args:
        measured: Variances.
        by_signs: Work of one sample by signs, by the taps of a group.
        samples: What is asked for.
    """
    parts = {k: m for k, m in measured.items() if m.signs + m.split * m.gauss_newton > 0}
    whole = GAUSS_NEWTON + sum(by_signs.values())
    chosen, least = None, 0.0
    for limit in sorted({m.factored / m.signs for m in parts.values() if m.signs > 0 and math.isfinite(m.factored)}):
        factored = frozenset(k for k, m in parts.items() if m.factored <= limit * m.signs)
        left = sum(by_signs[taps] for taps in {m.taps for k, m in measured.items() if k not in factored})
        count = max(2, round(samples * min(1.0, SHARED / left))) if left else 0
        gain = math.log((SHARED + left * count / samples) / whole)
        ratios = [gain + _log_ratio(m, k in factored, count / samples) for k, m in parts.items()]
        if max(ratios) <= math.log(WORSE) and sum(ratios) < least:
            chosen, least = Choice(factored, TIMES * samples, count), sum(ratios)
    return chosen


def _log_ratio(m: Measured, factored: bool, share: float) -> float:
    """Log of a part's variance over that by signs alone."""
    before = m.signs + m.split * m.gauss_newton
    if factored:
        after = (m.factored + m.gauss_newton) / TIMES
    else:
        after = m.signs / share + m.split * m.gauss_newton / TIMES
    return math.log(max(after, 1e-12 * before) / before)
