"""Figure: spectral density of the Hessian early, midway and late, the optimizers side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geomtraj.errors import InputError
from geomtraj.linalg.outliers import with_known_outliers
from geomtraj.measuring.results import Measurement, Results
from geomtraj.reporting.data import ReportData, ReportFigure, Skipped, listed, not_measured, seeds_text
from geomtraj.reporting.style import EARLY_TO_LATE, WIDTH, legend, number, short

TITLE = "Spectral densities along the trajectory"
COLUMNS = 3
DECADES = 3  # the axis is linear below the largest |eigenvalue| times 10^-DECADES, logarithmic above
KERNEL = 0.25  # standard deviation of the smoothing kernel in units of asinh(lambda / linear width)
POINTS = 500


def draw(data: ReportData) -> ReportFigure | Skipped:
    """Mean density over seeds at the first, the middle and the last iterate past the start."""
    groups = {name: [r for r in runs if _measured(r)] for name, runs in data.measured("spectrum").items()}
    groups = {name: runs for name, runs in groups.items() if runs}
    if not groups:
        return not_measured("spectrum", TITLE)
    picked = {name: pick(_common(runs)) for name, runs in groups.items()}
    groups = {name: runs for name, runs in groups.items() if picked[name]}
    if not groups:
        return Skipped(f"The figure “{TITLE}” is left out: the seeds of an optimizer have no measured step in common.")
    chosen = {
        name: {step: [_measured(r)[step] for r in runs] for step in picked[name]} for name, runs in groups.items()
    }
    everything = [m.details for steps in chosen.values() for ms in steps.values() for m in ms]
    scale = _Axis.of(everything)
    columns = 2 if len(groups) == 4 else min(len(groups), COLUMNS)
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(WIDTH, 0.3 + 3.0 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    highest = 0.0
    for i, ax in enumerate(axes.flat):
        if i >= len(groups):
            ax.set_visible(False)
            continue
        name = list(groups)[i]
        highest = max(highest, _draw(ax, scale, groups[name], chosen[name]))
        ax.set_title(short(name, 48), color=data.looks[name].colour, fontweight="bold", fontsize=9)
        ax.tick_params(labelbottom=i + columns >= len(groups), labelleft=i % columns == 0)
        if i + columns >= len(groups):
            ax.set_xlabel("eigenvalue λ")
        if i % columns == 0:
            ax.set_ylabel("density (share per unit of λ)")
    scale.apply(axes[0, 0], highest)
    caption = (
        f"Density of the Hessian's eigenvalues by Lanczos quadrature with converged outliers at their known mass, "
        f"{seeds_text(groups)} (mean over seeds; the "
        f"eigenvalue axis is linear between ±{number(scale.linear, 2)} and logarithmic beyond); the eigenvalues drawn "
        f"range from {number(scale.low)} to {number(scale.high)}."
    )
    return ReportFigure("densities", TITLE, caption, figure)


def steps_of(results: Results, step: int | None) -> list[int]:
    """The step asked for, or early, midway and late ones, of one run.

    Raises:
        InputError: The spectrum was not measured, or not at that step.
    """
    found = _measured(results) if "spectrum" in results.statistics else {}
    if not found:
        raise InputError(f"the spectrum was not measured in {results.path}: add 'spectrum' to gt.measure's statistics.")
    if step is not None and step not in found:
        raise InputError(f"the spectrum was not measured at step {step!r}, but at {listed(map(str, found), 12)}.")
    return pick(sorted(found)) if step is None else [step]


def draw_run(ax: Axes, results: Results, steps: list[int]) -> None:
    """One run's densities on axes of their own."""
    chosen = {step: [_measured(results)[step]] for step in steps}
    scale = _Axis.of([m.details for ms in chosen.values() for m in ms])
    highest = _draw(ax, scale, [results], chosen)
    ax.set(xlabel="eigenvalue λ", ylabel="density (share per unit of λ)")
    scale.apply(ax, highest)


def _draw(ax: Axes, scale: _Axis, runs: list[Results], chosen: dict[int, list[Measurement]]) -> float:
    """One curve for each step, the mean over its measurements; returns the highest density."""
    entries, highest = [], 0.0
    for colour, (step, ms) in zip(_colours(len(chosen)), chosen.items(), strict=True):
        density = np.mean([smoothed(*_nodes(m.details), scale.grid, scale.linear) for m in ms], axis=0)
        highest = max(highest, float(density.max()))
        ax.plot(scale.grid, density, color=colour, lw=1.4)
        entries.append((_when(runs, step), {"color": colour, "lw": 2}))
    legend(ax, entries, loc="upper right", fontsize=7.5, handlelength=1.2)
    return highest


@dataclass(frozen=True)
class _Axis:
    """The eigenvalues' axis: linear below `linear`, logarithmic beyond.

    Attributes:
        grid: Where densities are drawn, shape (n,).
        linear: Where the linear part ends.
        low: Smallest eigenvalue.
        high: Largest eigenvalue.
        size: Number of parameters.
    """

    grid: np.ndarray
    linear: float
    low: float
    high: float
    size: float

    @classmethod
    def of(cls, details: list[dict[str, Any]]) -> _Axis:
        """The axis on which all these densities can be drawn."""
        nodes = np.concatenate([_nodes(d)[0] for d in details])
        low, high = float(nodes.min()), float(nodes.max())
        linear = (max(-low, high) or 1.0) * 10.0**-DECADES
        left, right = math.asinh(low / linear) - 4 * KERNEL, math.asinh(high / linear) + 4 * KERNEL
        size = max((d.get("size") or 0 for d in details), default=0) or 1e4
        return cls(linear * np.sinh(np.linspace(left, right, POINTS)), linear, low, high, size)

    def apply(self, ax: Axes, highest: float) -> None:
        """Scale, ticks and limits."""
        largest = max(-self.low, self.high) or 1.0
        ax.set_xscale("asinh", linear_width=self.linear)
        decades = 10.0 ** np.arange(math.ceil(math.log10(self.linear)) + 1, math.floor(math.log10(largest)) + 1)
        ticks = np.concatenate([-decades[::-1], [0], decades])
        ax.set_xticks(ticks[(ticks >= self.grid[0]) & (ticks <= self.grid[-1])])
        ax.xaxis.set_minor_locator(ticker.NullLocator())
        ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
        ax.set_xlim(self.grid[0], self.grid[-1])
        # One eigenvalue of P at the far end of the axis is the smallest peak worth seeing.
        lowest = min(0.2 / (self.size * KERNEL * math.sqrt(2 * math.pi) * largest), highest / 100)
        ax.set_yscale("log")
        ax.set_ylim(lowest, highest * 3)
        ax.yaxis.set_major_locator(ticker.LogLocator(numticks=7))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))


def smoothed(nodes: np.ndarray, weights: np.ndarray, grid: np.ndarray, linear: float) -> np.ndarray:
    """Density per unit of lambda on the grid, each node widened by a Gaussian in asinh(lambda / linear)."""
    distance = (np.arcsinh(grid / linear)[:, None] - np.arcsinh(nodes / linear)[None, :]) / KERNEL
    in_asinh = np.exp(-0.5 * distance**2) @ weights / (KERNEL * math.sqrt(2 * math.pi))
    return in_asinh / np.sqrt(grid**2 + linear**2)


def pick(steps: list[int]) -> list[int]:
    """First, middle and last step past the start; the start too where there are fewer than three others."""
    later = [s for s in steps if s > 0]
    steps = later if len(later) >= 3 else steps
    return sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []


def _measured(r: Results) -> dict[int, Measurement]:
    return {m.step: m for m in r.of("spectrum") if m.details.get("nodes") and m.details.get("weights")}


def _common(runs: list[Results]) -> list[int]:
    return sorted(set.intersection(*(set(_measured(r)) for r in runs)))


def _nodes(details: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """All probes' nodes and weights, shape (n,) each; converged outliers with the mass that they are known to have."""
    ends = [(details.get(end, ()), details.get(f"{end}_residuals", ())) for end in ("top", "bottom")]
    if details.get("size") and all(len(values) == len(residuals) for values, residuals in ends):
        top, bottom = ((np.array(values), np.array(residuals)) for values, residuals in ends)
        return with_known_outliers(details["nodes"], details["weights"], int(details["size"]), top=top, bottom=bottom)
    return (
        np.concatenate([np.ravel(x) for x in details["nodes"]]).astype(np.float64),
        np.concatenate([np.ravel(x) for x in details["weights"]]).astype(np.float64),
    )


def _when(runs: list[Results], step: int) -> str:
    losses = [loss for r in runs if "loss" in r.statistics and (loss := r.losses().get(step)) is not None]
    return f"step {step}" + (f", loss {number(float(np.mean(losses)))}" if losses else "")


def _colours(count: int) -> tuple[str, ...]:
    return {1: EARLY_TO_LATE[2:], 2: (EARLY_TO_LATE[0], EARLY_TO_LATE[2])}.get(count, EARLY_TO_LATE)
