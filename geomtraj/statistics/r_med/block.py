"""One block of a diagonal G + R: what products tell of R, and draws of the largest entry and of the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from geomtraj.statistics.r_med.share import ShareModel, Shares, fit

DRAWS = 128
"""Draws of a block's entries."""
SMALL = 64
"""Entries up to which one distribution of r serves the median and the largest entry."""
LEARN = 192
"""Measured entries that the distribution is learned from at most."""
PANEL = 512
"""Entries that are drawn for the median at most, each standing for as many next to it in the order of G."""
CANDIDATES = 48
"""Entries that may be the largest, drawn besides."""
LEADERS = 6
"""Of them that are told, likeliest first."""
SHARED_ERROR = 0.3
"""Share of the variance of G's errors that is common to a block's entries."""
PRIOR_FREEDOM = 3.0
"""Products that the noise of the block's other entries counts as, beside an entry's own."""
FINEST = 1e-6
"""Noise of a measurement, relative to G, that is told from none."""
CLIP = 2.5
"""Robust standard deviations of log G beyond which the distribution of r is taken for what it is there."""
WITNESSES = 2048
"""Entries of a block whose results tell how much noise a product has there, at most."""
LEAST_SCALE = 1e-3
"""Entries are probed as if they were at least so large next to the block's median."""


@dataclass
class BlockKnown:
    """What is known of the entries of one block with G_ii > 0, (n,) each.

    Attributes:
        number: Number of the block.
        indices: Their positions in theta, ascending by row.
        g: Estimates of G_ii.
        error: Their relative standard errors.
        zeros: Entries of the block beside these, which are exactly zero.
        rows: Numbers of their rows in the block's matrix, ascending: entries of a row disturb each other most.
        columns: Numbers of their columns.
        exact: H_ii where it was measured alone, NaN elsewhere.
        in_row: Noise variance that one entry adds at another of its row, relative to typical entries.
        scale: Sizes at which entries are probed, about 1 / sqrt|H_ii|: then none disturbs the others much more.
    """

    number: int
    indices: np.ndarray
    g: np.ndarray
    error: np.ndarray
    zeros: int
    rows: np.ndarray
    columns: np.ndarray
    exact: np.ndarray = field(init=False)
    scale: np.ndarray = field(init=False)
    in_row: float = np.inf

    def __post_init__(self) -> None:
        self.exact = np.full(self.g.size, np.nan)
        self._sum, self._information, self._scatter = (np.zeros(self.g.size) for _ in range(3))
        self._squares, self._seen, self._times = (np.zeros(self.g.size) for _ in range(3))
        starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        self._starts, self._row = starts, np.repeat(np.arange(starts.size), np.diff(starts, append=self.g.size))
        every = -(-self.g.size // WITNESSES)
        self.witnesses = np.arange(0, self.g.size, every)
        self.expect(self.g)

    def expect(self, magnitudes: np.ndarray) -> float:
        """Probe entries by these magnitudes (n,) from now on; by how much that changes their squared scale."""
        new = 1 / np.sqrt(np.maximum(magnitudes, LEAST_SCALE * np.median(magnitudes)))
        change = np.mean((new / self.scale)[self.witnesses] ** 2) if hasattr(self, "scale") else 1.0
        self.scale = new
        return float(change)

    def choose(self, count: int, weights: np.ndarray, rng: np.random.Generator, spread: float = 0.0) -> np.ndarray:
        """Some entries at random by their weights (n,), none of weight zero.

        At most half of the rows have any, so that the others tell the noise; a row has as many as leave the noise from
        each other below the `spread`, a variance, and while one is enough no two are of a column.
        """
        keys = rng.exponential(size=self.g.size) / np.maximum(weights, 1e-300)
        first = np.flatnonzero(keys == np.minimum.reduceat(keys, self._starts)[self._row])
        first = first[np.argsort(keys[first])]
        first, most = first[weights[first] > 0], max(1, self._starts.size // 2)
        deep = min(1 + int(spread / max(self.in_row, 1e-6)), -(-count // most))
        if deep == 1:
            apart = np.sort(np.unique(self.columns[first], return_index=True)[1])
            return np.concatenate([first[apart], np.delete(first, apart)])[: min(count, most)]
        some = np.flatnonzero(np.isin(self._row, self._row[first[:most]]) & (weights > 0))
        some = some[np.lexsort((keys[some], self._row[some]))]
        starts = np.flatnonzero(np.diff(self._row[some], prepend=-1))
        rank = np.arange(some.size) - np.repeat(starts, np.diff(starts, append=some.size))
        return some[rank < deep][:count]

    def response(self, result: np.ndarray) -> float:
        """Mean square of a product (P,) at this block's witnesses, in their scale."""
        return float(np.mean((result[self.indices[self.witnesses]] * self.scale[self.witnesses]) ** 2))

    def add(self, chosen: np.ndarray, signs: np.ndarray, result: np.ndarray, elsewhere: float) -> float:
        """Learn from a product (P,) with some entries, of which so much noise comes from other blocks.

        Rows without a chosen entry tell the noise of those in other rows, and the other entries of a chosen one's row
        that of its row; both feel one entry more than the chosen ones do.

        Returns:
            Noise variance that one entry adds at another row.
        """
        deep = np.bincount(self._row[chosen], minlength=self._starts.size)
        squares = (result[self.indices[self.witnesses]] * self.scale[self.witnesses]) ** 2
        beside = deep[self._row[self.witnesses]]
        free = beside == 0
        level = max(float(squares[free].mean()), FINEST**2) if free.any() else elsewhere
        own = max(level - elsewhere, 0.0)
        noise = np.full(chosen.size, min(level, elsewhere) + own * (1 - 1 / chosen.size))
        beside[np.searchsorted(self.witnesses, chosen[np.isin(chosen, self.witnesses)])] = 0
        if beside.any():
            found = max(float(np.mean(squares[beside > 0] - level)) / float(beside[beside > 0].mean()), 0.0)
            self.in_row = found if np.isinf(self.in_row) else (self.in_row + found) / 2
            noise += (deep[self._row[chosen]] - 1) * self.in_row
        if free.any():
            self._squares[self.witnesses[free]] += squares[free] / level
            self._seen[self.witnesses[free]] += 1
        information = self.scale[chosen] ** 4 / np.maximum(noise, FINEST**2)
        found = result[self.indices[chosen]] / (signs * self.scale[chosen])
        self._sum[chosen] += information * found
        self._scatter[chosen] += information * found**2
        self._information[chosen] += information
        self._times[chosen] += 1
        return own / chosen.size

    @property
    def share(self) -> tuple[np.ndarray, np.ndarray]:
        """Measurements of r (n,) and their standard errors, infinite where there is none."""
        measured = self._information > 0
        y = self._sum / np.where(measured, self._information, 1.0)
        scatter = np.maximum(self._scatter - y * self._sum, 0.0)  # of repeated measurements about their mean
        own = (self._squares + PRIOR_FREEDOM) / (self._seen + PRIOR_FREEDOM)
        own = np.maximum(own, (scatter + 1) / np.maximum(self._times, 1))  # the same few may disturb it each time
        noise = np.where(measured, np.sqrt(own / np.where(measured, self._information, 1.0)), np.inf) / self.g
        return y / self.g, np.maximum(noise, 1e-5)

    @property
    def size(self) -> int:
        """Entries of the whole block."""
        return self.g.size + self.zeros


@dataclass(frozen=True)
class BlockDraws:
    """Draws of a block's largest magnitude and median, and what else tells where to measure.

    Attributes:
        largest: Largest magnitudes (D,).
        median: Medians (D,), zeros counted.
        panel: Magnitudes (D, k) of entries at equal distances in the order of G.
        best: Estimates of all magnitudes (n,).
        leaders: Entries that may be the largest and are not known exactly, likeliest first.
        lead: Probability (n,) of each entry to be the largest, zero where it is known exactly.
        doubt: How doubtful each entry's side of the median is (n,).
        typical: Magnitudes (n,) as they are to be expected from G alone.
        share_spread: Scale of r near the median, relative to the typical 1 + r there.
    """

    largest: np.ndarray
    median: np.ndarray
    panel: np.ndarray
    best: np.ndarray
    leaders: np.ndarray
    lead: np.ndarray
    doubt: np.ndarray
    typical: np.ndarray
    share_spread: float

    @property
    def spread(self) -> tuple[float, float]:
        """Standard deviations of the logarithms of largest entry and median."""
        return float(np.log(self.largest).std()), float(np.log(np.maximum(self.median, 1e-300)).std())

    @property
    def width(self) -> float:
        """About high / low - 1 of R_med's 95 % interval."""
        return float(np.expm1(4 * np.log(self.largest / np.maximum(self.median, 1e-300)).std()))


def analyse(blocks: Sequence[BlockKnown], seed: int, count: int = DRAWS) -> list[BlockDraws]:
    """Draws of some blocks given what is known of them; their models of r are fitted side by side."""
    thorough = count == DRAWS
    generators = [np.random.default_rng([seed, known.number]) for known in blocks]
    places = [place for known, rng in zip(blocks, generators, strict=True) for place in _places(known, rng)]
    models = iter(fit([place.shares for place in places], thorough))
    found, left = [], iter(places)
    for known, rng in zip(blocks, generators, strict=True):
        usual = _Local(next(left), next(models))
        top = _Local(next(left), next(models)) if known.g.size > SMALL else usual
        found.append(_draws(known, usual, top, rng, count))
    return found


@dataclass(frozen=True)
class _Place:
    """Where r's distribution is wanted: all entries (n,) as x, which is zero there, and measurements near it."""

    x: np.ndarray
    shares: Shares


def _places(known: BlockKnown, rng: np.random.Generator) -> list[_Place]:
    """About the median, and in blocks that are not small about the largest entries."""
    logs = np.log(known.g)
    spread = max(float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.349, 0.05)
    centres = [float(np.median(logs))]
    if known.g.size > SMALL:
        rank = max(4, known.g.size // 100)
        centres.append(float(np.partition(logs, -rank)[-rank]))
    y, noise = known.share
    measured = np.flatnonzero(np.isfinite(noise))
    found = []
    for centre in centres:
        x, some = np.clip((logs - centre) / spread, -CLIP, CLIP), measured
        if some.size > LEARN:
            some = rng.choice(some, LEARN, replace=False)
        near = np.exp(-0.5 * x[some] ** 2) + 0.02
        found.append(_Place(x, Shares(x[some], y[some], noise[some], near)))
    return found


def _draws(known: BlockKnown, usual: _Local, top: _Local, rng: np.random.Generator, count: int) -> BlockDraws:
    """Draws of entries: some at equal distances for the median, and all that may be the largest."""
    y, noise = known.share
    order = np.argsort(known.g, kind="stable")
    many = min(PANEL if count == DRAWS else PANEL // 4, known.g.size)
    panel = order[((np.arange(many) + rng.random()) * known.g.size / many).astype(int)]
    centre, scale = top.posterior(y, noise)
    reach = known.g * (np.abs(1 + centre) + 3 * np.hypot(scale, known.error))
    reach = np.where(np.isnan(known.exact), reach, np.abs(known.exact))
    candidates = np.argsort(-reach, kind="stable")[:CANDIDATES]
    common = rng.standard_normal((count, 1))
    drawn = _magnitudes(known, panel, usual.draw(y, noise, panel, count, rng), common, rng)
    high = _magnitudes(known, candidates, top.draw(y, noise, candidates, count, rng), common, rng)
    median = middle(drawn, np.full(many, known.g.size / many), known.zeros)
    first = np.bincount(high.argmax(1), minlength=candidates.size) / count
    lead = np.zeros(known.g.size)
    lead[candidates] = first * np.isnan(known.exact[candidates])
    leaders = candidates[np.argsort(-lead[candidates], kind="stable")[:LEADERS]]
    doubt, share = np.zeros(known.g.size), (drawn <= median[:, None]).mean(0)
    logs = np.log(known.g)
    doubt[order] = np.interp(np.arange(known.g.size), np.searchsorted(logs[order], logs[panel]), share * (1 - share))
    best = np.abs(known.g * (1 + usual.posterior(y, noise)[0]))
    best[candidates] = np.median(high, 0)
    location, spread = usual.model.location(usual.x)
    middle_location, middle_spread = usual.model.location(np.zeros(1))
    return BlockDraws(
        largest=np.maximum(high.max(1), 1e-300),
        median=median,
        panel=drawn,
        best=np.where(np.isnan(known.exact), best, np.abs(known.exact)),
        leaders=leaders[lead[leaders] > 0],
        lead=lead,
        doubt=doubt * np.isnan(known.exact),
        typical=known.g * np.hypot(1 + location, spread),
        share_spread=float((middle_spread / np.hypot(1 + middle_location, middle_spread))[0]),
    )


def middle(drawn: np.ndarray, weights: np.ndarray, zeros: float) -> np.ndarray:
    """Medians (D,) of entries (D, k) that stand for so many each (k,), and of some zeros."""
    order = np.argsort(drawn, 1)
    places = zeros + np.cumsum(weights[order], 1)
    half = (zeros + weights.sum()) / 2
    rows = np.arange(len(drawn))
    first = (places < half * (1 - 1e-12)).sum(1).clip(0, drawn.shape[1] - 1)
    second = (places <= half * (1 + 1e-12)).sum(1).clip(0, drawn.shape[1] - 1)
    lower = 0.0 if zeros >= half else drawn[rows, order[rows, first]]
    upper = 0.0 if zeros > half else drawn[rows, order[rows, second]]
    return (lower + upper) / 2 * np.ones(len(drawn))


@dataclass(frozen=True)
class _Local:
    """The distribution of r where the place's x is about zero."""

    place: _Place
    model: ShareModel

    @property
    def x(self) -> np.ndarray:
        """Where the entries (n,) stand."""
        return self.place.x

    def posterior(self, y: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) of r given what was measured, as if all were normal."""
        centre, scale = self.model.location(self.x)
        weight = scale**2 / (scale**2 + np.minimum(noise, 1e12) ** 2)
        return centre + weight * (y - centre), scale * np.sqrt(1 - weight)

    def draw(
        self, y: np.ndarray, noise: np.ndarray, chosen: np.ndarray, count: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws (count, k) of r of the chosen entries (k,)."""
        return self.model.draw(self.x[chosen], y[chosen], noise[chosen], count, rng)


def _magnitudes(
    known: BlockKnown, chosen: np.ndarray, r: np.ndarray, common: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """|H| (D, k) of the chosen entries: draws of r (D, k), and G's own errors, shrunk and partly common."""
    logs = np.log(known.g)
    variance = max(float(logs.var()), 1e-6)
    error = np.minimum(known.error[chosen], 0.7)
    left = np.clip(1 - error**2 / variance, 0.1, 1)
    z = np.sqrt(SHARED_ERROR) * common + np.sqrt(1 - SHARED_ERROR) * rng.standard_normal(r.shape)
    g = np.exp(logs.mean() + left * (logs[chosen] - logs.mean()) + np.sqrt(left) * error * z)
    found = np.abs(g + known.g[chosen] * r)
    return np.where(np.isnan(known.exact[chosen]), found, np.abs(known.exact[chosen]))
