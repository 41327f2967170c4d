"""One block of a diagonal G + R: what products tell of R, and draws of the largest entry and of the median."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from geomtraj.statistics.r_med.share import ShareModel

DRAWS = 128
"""Draws of a block's entries."""
SMALL = 64
"""Entries up to which one distribution of r serves the median and the largest entry."""
LEARN = 400
"""Measured entries that the distribution is learned from at most."""
PANEL = 512
"""Entries that are drawn for the median at most, each standing for as many next to it in the order of G."""
CANDIDATES = 48
"""Entries that may be the largest, drawn besides."""
SHARED_ERROR = 0.3
"""Share of the variance of G's errors that is common to a block's entries."""
PRIOR_FREEDOM = 3.0
"""Products that the noise of the block's other entries counts as, beside an entry's own."""
FINEST = 1e-6
"""Noise of a measurement, relative to G, that is told from none."""
CLIP = 2.5
"""Robust standard deviations of log G beyond which the distribution of r is taken for what it is there."""


@dataclass
class BlockKnown:
    """What is known of the entries of one block with G_ii > 0, (n,) each.

    Attributes:
        number: Number of the block.
        indices: Their positions in theta.
        g: Estimates of G_ii.
        error: Their relative standard errors.
        zeros: Entries of the block beside these, which are exactly zero.
        exact: H_ii where it was measured alone, NaN elsewhere.
        own_noise: Noise of a measurement of r by one other entry of the block, from products so far.
    """

    number: int
    indices: np.ndarray
    g: np.ndarray
    error: np.ndarray
    zeros: int
    own_noise: float = 0.05
    exact: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.scale = 1 / np.sqrt(np.maximum(self.g, 1e-4 * np.median(self.g)))
        self.exact = np.full(self.g.size, np.nan)
        self._sum, self._information = np.zeros(self.g.size), np.zeros(self.g.size)

    def add(self, vectors: np.ndarray, results: np.ndarray) -> None:
        """Products (n, k) with vectors (n, k): where these are zero, the results are the noise of the others."""
        chosen = vectors != 0
        count, free = chosen.sum(0), (~chosen).sum(0)
        squares = np.where(chosen, 0.0, (results * self.scale[:, None]) ** 2)
        level = np.maximum(squares.sum(0) / np.maximum(free, 1), FINEST**2)
        own = ((squares / level).sum(1) + PRIOR_FREEDOM) / ((~chosen).sum(1) + PRIOR_FREEDOM)
        if (count > 1).any():
            self.own_noise = float(np.sqrt(np.mean((level / count)[count > 1])))
        information = np.where(chosen, 1 / level, 0.0) / own[:, None] * self.scale[:, None] ** 4
        self._sum += (information * results / np.where(chosen, vectors, 1.0)).sum(1)
        self._information += information.sum(1)

    @property
    def share(self) -> tuple[np.ndarray, np.ndarray]:
        """Measurements of r (n,) and their standard errors, infinite where there is none."""
        measured = self._information > 0
        information = np.where(measured, self._information, 1.0)
        noise = np.where(measured, 1 / np.sqrt(information), np.inf) / self.g
        return np.where(measured, self._sum / information, 0.0) / self.g, np.maximum(noise, 1e-5)

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
        doubt: How doubtful each entry's side of the median is (n,).
        share_spread: Scale of r near the median.
    """

    largest: np.ndarray
    median: np.ndarray
    panel: np.ndarray
    best: np.ndarray
    leaders: np.ndarray
    doubt: np.ndarray
    share_spread: float

    @property
    def spread(self) -> tuple[float, float]:
        """Standard deviations of the logarithms of largest entry and median."""
        return float(np.log(self.largest).std()), float(np.log(np.maximum(self.median, 1e-300)).std())

    @property
    def width(self) -> float:
        """About high / low - 1 of R_med's 95 % interval."""
        return float(np.expm1(4 * np.log(self.largest / np.maximum(self.median, 1e-300)).std()))


def analyse(known: BlockKnown, rng: np.random.Generator, count: int = DRAWS) -> BlockDraws:
    """Draw entries given what is known: some at equal distances for the median, and all that may be the largest."""
    thorough = count == DRAWS
    logs, order = np.log(known.g), np.argsort(known.g, kind="stable")
    spread = max(float(np.subtract(*np.quantile(logs, [0.75, 0.25]))) / 1.349, 0.05)
    y, noise = known.share
    usual = _Local(known, (logs - np.median(logs)) / spread, rng, thorough)
    top = usual
    if known.g.size > SMALL:
        top = _Local(known, (logs - logs[order[-max(4, known.g.size // 100)]]) / spread, rng, thorough)
    many = min(PANEL if thorough else PANEL // 2, known.g.size)
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
    leading = np.argsort(-first, kind="stable")[:6]
    leaders = candidates[leading[first[leading] > 0.04]]
    doubt, share = np.zeros(known.g.size), (drawn <= median[:, None]).mean(0)
    doubt[order] = np.interp(np.arange(known.g.size), np.searchsorted(logs[order], logs[panel]), share * (1 - share))
    best = np.abs(known.g * (1 + usual.posterior(y, noise)[0]))
    best[candidates] = np.median(high, 0)
    return BlockDraws(
        largest=np.maximum(high.max(1), 1e-300),
        median=median,
        panel=drawn,
        best=np.where(np.isnan(known.exact), best, np.abs(known.exact)),
        leaders=leaders[np.isnan(known.exact[leaders])],
        doubt=doubt * np.isnan(known.exact),
        share_spread=float(usual.model.location(np.zeros(1))[1][0]),
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


class _Local:
    """The distribution of r where x is about zero, from the block's measurements near there."""

    def __init__(self, known: BlockKnown, x: np.ndarray, rng: np.random.Generator, thorough: bool):
        self.x = np.clip(x, -CLIP, CLIP)
        y, noise = known.share
        measured = np.flatnonzero(np.isfinite(noise))
        if measured.size > LEARN:
            measured = rng.choice(measured, LEARN, replace=False)
        near = np.exp(-0.5 * self.x[measured] ** 2) + 0.02
        self.model = ShareModel(self.x[measured], y[measured], noise[measured], near, thorough)

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
