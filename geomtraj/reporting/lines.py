"""A quantity along the trajectories of one optimizer, as lines: mean over seeds, their range, and each measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.path import Path

from geomtraj.comparing.curves import Curve, at_places, between
from geomtraj.measuring.results import Results
from geomtraj.reporting.data import ReportData
from geomtraj.reporting.style import Look, log_axis, step_axis
from geomtraj.reporting.thinning import LINE, PANEL, thinned

GRID = 40
HEADROOM = 3.0  # how far above the highest and below the lowest value an interval may stretch the axis
UP = Path([(0, 0), (0, 0.5), (-0.12, 0.36), (0, 0.5), (0.12, 0.36)], [1, 2, 1, 2, 2])
DOWN = Path([(0, 0), (0, -0.5), (-0.12, -0.36), (0, -0.5), (0.12, -0.36)], [1, 2, 1, 2, 2])


@dataclass(frozen=True)
class Points:
    """The measurements of one run that can stand on a log axis, each array of shape (n,)."""

    steps: np.ndarray
    losses: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def x(self, over: str) -> np.ndarray:
        """Step or loss."""
        return self.losses if over == "loss" else self.steps

    def thinned(self, over: str, most: int) -> Points:
        """At most so many of them."""
        kept = thinned(self.x(over), self.values, most)
        return Points(*(getattr(self, f.name)[kept] for f in fields(self)))


def points(along: Curve, label: str, sign: int = 1) -> Points:
    """One quantity times `sign` along a run; values that are not finite and positive are left out."""
    values, low, high = (along.rows((label,), x)[0] for x in (along.values, along.low, along.high))
    low, high = (low, high) if sign > 0 else (-high, -low)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(values) & (sign * values > 0)
    steps = along.steps.astype(np.float64)
    return Points(*(x[good] for x in (steps, along.losses, sign * values, low, high)))


def mean_over_seeds(curves: Sequence[Curve], label: str, sign: int, over: str) -> np.ndarray:
    """Geometric mean, lowest and highest over the seeds, rows (x, mean, low, high), shape (n, 4).

    Over steps: at those that all runs have. Over the loss: inside the range that all runs cover on their way down, by
    bracketing.
    """
    curves = [c for c in curves if label in c.labels]
    if not curves:
        return np.empty((0, 4))
    if over == "step":
        common = set.intersection(*(set(c.steps.tolist()) for c in curves))
        places = np.array(sorted(common), dtype=np.float64)
        read = [at_places(c.steps, places).read(c.rows((label,), c.values)[0]) for c in curves]
    else:
        curves = [c.falling() for c in curves]
        finite = [c.losses[np.isfinite(c.losses)] for c in curves]
        high = min((x.max() for x in finite if x.size), default=0.0)
        low = max((x.min() for x in finite if x.size), default=0.0)
        if not 0 < low < high or not all(x.size for x in finite):
            return np.empty((0, 4))
        places = np.geomspace(high, low, GRID)
        read = [between(c.losses, places, falling=True).read(c.rows((label,), c.values)[0]) for c in curves]
    values = sign * np.array(read, dtype=np.float64)
    good = (np.isfinite(values) & (values > 0)).all(axis=0)
    values, places = values[:, good], places[good]
    mean = np.exp(np.log(values).mean(axis=0)) if values.size else places
    return np.column_stack([places, mean, values.min(axis=0), values.max(axis=0)])


def key(groups: dict[str, list[Results]], interval: str = "95 % intervals") -> str:
    """What lines, bands and dots of `draw_lines` mean, for a caption."""
    several = max(map(len, groups.values())) > 1
    lines = "line: geometric mean over seeds; band: their range; " if several else ""
    every = "some of the " if _many(groups) else ""
    return f"{lines}dots: {every}single measurements with {interval}, an arrow in place of an end outside the panel"


def _many(groups: dict[str, list[Results]]) -> bool:
    """Whether panels show only some of the single measurements."""
    runs = [r for group in groups.values() for r in group]
    return any(len(r.steps) > max(PANEL // len(runs), 4) for r in runs)


def draw_lines(ax: Axes, data: ReportData, statistic: str, label: str, over: str, sign: int = 1) -> int:
    """Draws a quantity of all groups on a log axis over "step" or "loss".

    Thick line: geometric mean over seeds. Band: their range. Dots: single measurements with their intervals.

    Returns:
        Number of points there are; of many only some are drawn.
    """
    curves = {name: [data.curve(r, statistic) for r in runs] for name, runs in data.measured(statistic).items()}
    found = {name: [points(c, label, sign) for c in runs] for name, runs in curves.items()}
    drawn = [p for runs in found.values() for p in runs if np.isfinite(p.x(over)).any()]
    if not drawn or not any(p.values.size for p in drawn):
        ax.text(0.5, 0.5, "no finite positive value", transform=ax.transAxes, ha="center", color="#777777")
        ax.set_axis_off()
        return 0
    bottom, top = _limits(drawn)
    most = max(PANEL // len(drawn), 4)
    for name, runs in curves.items():
        look = data.looks[name]
        mean = mean_over_seeds(runs, label, sign, over)
        mean = mean[thinned(mean[:, 0], mean[:, 1], LINE)]
        if len(runs) > 1:
            ax.fill_between(mean[:, 0], mean[:, 2], mean[:, 3], color=look.colour, alpha=0.16, lw=0)
        ax.plot(mean[:, 0], mean[:, 1], color=look.colour, ls=look.dashes, lw=1.6, zorder=3)
        for p in (whole.thinned(over, most) for whole in found[name]):
            _draw_intervals(ax, p, over, look, bottom, top)
            ax.plot(p.x(over), p.values, ".", color=look.colour, ms=3, mew=0, alpha=0.7, zorder=2)
    log_axis(ax, "y", bottom, top)
    if over == "loss":
        losses = np.concatenate([p.losses[np.isfinite(p.losses)] for p in drawn])
        loss_axis(ax, losses)
    else:
        step_axis(ax, np.concatenate([p.steps for p in drawn]))
    return sum(p.values.size for p in drawn)


def loss_axis(ax: Axes, losses: np.ndarray) -> None:
    """The evaluation loss, falling from left to right as training goes on."""
    ax.set_xlabel("evaluation loss (falling)")
    if (losses > 0).all():
        margin = max((losses.max() / losses.min()) ** 0.04, 1.001)
        log_axis(ax, "x", float(losses.min() / margin), float(losses.max() * margin))
    ax.invert_xaxis()


def _limits(drawn: list[Points]) -> tuple[float, float]:
    """Where the axis ends: at the values, or at the ends of intervals that lie not too far beyond them."""
    values = np.concatenate([p.values for p in drawn])
    ends = np.concatenate([x for p in drawn for x in (p.low, p.high)])
    lowest, highest = values.min() / HEADROOM, values.max() * HEADROOM
    shown = np.concatenate([values, ends[(ends >= lowest) & (ends <= highest)]])
    margin = max((shown.max() / shown.min()) ** 0.06, 1.05)
    return float(shown.min() / margin), float(shown.max() * margin)


def _draw_intervals(ax: Axes, p: Points, over: str, look: Look, bottom: float, top: float) -> None:
    """Each known interval as a line; a short arrow in place of an end outside the panel."""
    known = np.isfinite(p.x(over)) & ~(np.isnan(p.low) | np.isnan(p.high)) & (p.high > p.low)
    x, values, low, high = p.x(over)[known], p.values[known], p.low[known], p.high[known]
    style: dict[str, Any] = {"color": look.colour, "alpha": 0.4, "zorder": 1}
    ends = (np.where(low < bottom, values, low), np.where(high > top, values, high), np.full(x.size, np.nan))
    ax.plot(np.repeat(x, 3), np.column_stack(ends).ravel(), lw=0.7, solid_capstyle="butt", **style)
    for beyond, marker in ((high > top, UP), (low < bottom, DOWN)):
        ax.plot(x[beyond], values[beyond], ls="", marker=marker, ms=11, mfc="none", mew=0.6, **style)
