"""How much of the variance of a statistic predictors account for, within layers and between them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from geomtraj.contrast.seeds import CONFIDENCE

Which = Literal["within", "between"]


@dataclass(frozen=True)
class Explained:
    """Share of the variance of y that least squares on the predictors accounts for.

    Attributes:
        r2: In the sample, from 0 to 1; NaN with too few points, layers, or a predictor that does not vary.
        low: Lower end of its 95 % interval, by bootstrap over seeds; NaN with fewer than three seeds.
        high: Upper end of it.
        held_out: The same for values that the line was not fitted to, below 0 where the prediction is worse than the
            mean: seeds are left out one at a time ("within"), or layers ("between").
        slopes: One for each predictor.
        n: Number of points, of layers for "between".
        seeds: Number of seeds.
        layers: Number of layers.
    """

    r2: float
    low: float
    high: float
    held_out: float
    slopes: tuple[float, ...]
    n: int
    seeds: int
    layers: int


def explained(
    y: ArrayLike, predictors: ArrayLike, layers: Sequence[Hashable], seeds: Sequence[Hashable], part: Which,
    draws: int = 500, seed: int = 0,
) -> Explained:  # fmt: skip
    """R^2 of y on the predictors, of its variation within layers or of the layers' means.

    "within": layers' means are taken out of all columns, one set of slopes for all layers. "between": a line through
    the layers' means. Points of one run are not independent, so the interval comes from drawing seeds, each with all
    its points, with replacement: Student's t with the draws' standard deviation on Fisher's scale, arctanh of R. It
    does not say what other layers would have given. On data with known R^2 of 0.2 to 0.99 from 4, 5 and 10 seeds the
    95 % intervals held it 91 to 99 % of the time.

    Args:
        y: Values, shape (n,).
        predictors: Columns, shape (n,) or (n, k); points with a value that is not finite are left out.
        layers: Layer of each point.
        seeds: Seed of each point; runs that share a seed stay together.
        part: What is explained.
        draws: Number of bootstrap draws.
        seed: Of them.
    """
    target = np.asarray(y, dtype=np.float64)
    columns = np.asarray(predictors, dtype=np.float64)
    columns = columns.reshape(len(target), -1)
    kept = np.isfinite(target) & np.isfinite(columns).all(axis=1)
    data = np.column_stack([target, columns])[kept]
    layer, unit = _numbered(layers, kept), _numbered(seeds, kept)
    count, many = (int(x.max()) + 1 if x.size else 0 for x in (unit, layer))
    whole = np.ones(len(data))
    r2, slopes = _fit(data, layer, whole, part)
    n = many if part == "between" else len(data)
    if not math.isfinite(r2):
        return Explained(math.nan, math.nan, math.nan, math.nan, (math.nan,) * columns.shape[1], n, count, many)
    low = high = math.nan
    if count > 2:
        rng = np.random.default_rng(seed)
        times = rng.multinomial(count, np.full(count, 1 / count), size=draws)
        found = np.array([_fit(data, layer, weights[unit].astype(float), part)[0] for weights in times])
        spread = float(np.nanstd(_fisher(found))) * math.sqrt(count / (count - 1))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread
        low, high = (math.tanh(max(float(_fisher(r2)) + side * half, 0)) ** 2 for side in (-1, 1))
    left_out = layer if part == "between" else unit
    return Explained(r2, low, high, _held_out(data, layer, left_out, part), slopes, n, count, many)


def _fisher(r2: ArrayLike) -> np.ndarray:
    """Arctanh of the root."""
    return np.arctanh(np.sqrt(np.clip(r2, 0, 1 - 1e-12)))


def _numbered(labels: Sequence[Hashable], kept: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the labels of the points that are kept, in the order of their appearance."""
    numbers: dict[Hashable, int] = {}
    chosen = [label for label, good in zip(labels, kept, strict=True) if good]
    return np.array([numbers.setdefault(label, len(numbers)) for label in chosen], dtype=np.int64)


def _means(data: np.ndarray, layer: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean (layers, 1 + k) of each layer's rows; NaN for a layer without weight."""
    many = int(layer.max()) + 1
    total = np.bincount(layer, weights, many)
    sums = np.column_stack([np.bincount(layer, weights * column, many) for column in data.T])
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums / total[:, None]


def _prepared(
    data: np.ndarray, layer: np.ndarray, weights: np.ndarray, part: Which
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred rows (n, 1 + k), their weights, and what was taken off (layers or 1, 1 + k)."""
    means = _means(data, layer, weights)
    if part == "within":
        return np.where(weights[:, None] > 0, data - means[layer], 0), weights, means
    means = means[np.isfinite(means).all(axis=1)]
    centre = means.mean(axis=0, keepdims=True)
    return means - centre, np.ones(len(means)), centre


def _fit(data: np.ndarray, layer: np.ndarray, weights: np.ndarray, part: Which) -> tuple[float, tuple[float, ...]]:
    """R^2 and slopes; NaN where they are not determined or leave no room for an error."""
    k = data.shape[1] - 1
    nothing = math.nan, (math.nan,) * k
    if not len(data):
        return nothing
    rows, w, _ = _prepared(data, layer, weights, part)
    lost = 1 if part == "between" else len(np.unique(layer[weights > 0]))
    root = np.sqrt(w)[:, None]
    target, columns = (rows[:, :1] * root)[:, 0], rows[:, 1:] * root
    total = float(target @ target)
    scale = np.linalg.norm(columns, axis=0)
    size = np.sqrt((data[:, 1:] ** 2).sum(axis=0)) + 1
    if int((w > 0).sum()) <= lost + k + 1 or not total > 0 or not (scale > 1e-10 * size).all():
        return nothing
    slopes, *_ = np.linalg.lstsq(columns / scale, target, rcond=None)
    error = target - columns / scale @ slopes
    return 1 - float(error @ error) / total, tuple((slopes / scale).tolist())


def _held_out(data: np.ndarray, layer: np.ndarray, left_out: np.ndarray, part: Which) -> float:
    """R^2 over points that took no part in the fit, against the mean of those that did."""
    error = total = 0.0
    points = data
    if part == "between":
        points = _means(data, layer, np.ones(len(data)))
        left_out, layer = np.arange(len(points)), np.arange(len(points))
    for one in np.unique(left_out):
        train = left_out != one
        _, slopes = _fit(points, layer, train.astype(float), part)
        if not all(map(math.isfinite, slopes)):
            return math.nan
        _, _, centre = _prepared(points, layer, train.astype(float), part)
        away = points[~train] - (centre[layer[~train]] if part == "within" else centre)
        away = away[np.isfinite(away).all(axis=1)]
        error += float(((away[:, 0] - away[:, 1:] @ np.array(slopes)) ** 2).sum())
        total += float((away[:, 0] ** 2).sum())
    return 1 - error / total if total > 0 else math.nan


@dataclass(frozen=True)
class Share:
    """Sum of a predictor's values over the sum of y's: what it accounts for with a slope of 1, nothing fitted.

    Attributes:
        share: NaN where the sum of y is 0 or no seed has both.
        low: Lower end of the 95 % interval over seeds, by Fieller's theorem; NaN with fewer than two seeds, or where
            the sum of y cannot be told from 0.
        high: Upper end of it.
        n: Number of seeds.
    """

    share: float
    low: float
    high: float
    n: int


def share_of(y: ArrayLike, predictor: ArrayLike) -> Share:
    """Mean of a predictor over seeds divided by the mean of y, in the same unit, with Fieller's interval.

    Args:
        y: One value for each seed, shape (n,).
        predictor: One value for each seed, shape (n,); seeds that lack one are left out.

    Source: Fieller, "Some problems in interval estimation", Journal of the Royal Statistical Society B 1954.
    """
    pairs = np.column_stack([np.asarray(y, dtype=np.float64), np.asarray(predictor, dtype=np.float64)])
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    n = len(pairs)
    below, above = pairs.mean(axis=0) if n else (math.nan, math.nan)
    if not n or below == 0:
        return Share(math.nan, math.nan, math.nan, n)
    share = float(above / below)
    if n < 2:
        return Share(share, math.nan, math.nan, n)
    covariance = np.cov(pairs.T) / n
    t = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) ** 2
    # The ratios r for which the mean of predictor - r y cannot be told from 0.
    a = below**2 - t * covariance[0, 0]
    b = below * above - t * covariance[0, 1]
    c = above**2 - t * covariance[1, 1]
    if a <= 0 or b * b < a * c:
        return Share(share, math.nan, math.nan, n)
    half = math.sqrt(b * b - a * c)
    return Share(share, float((b - half) / a), float((b + half) / a), n)
