"""Figure: spectral density of the Hessian early, midway and late, the optimizers side by side."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from geomtraj.measuring.results import Measurement, Results
from geomtraj.report.material import Drawing, LeftOut, Material, not_measured, seeds_text
from geomtraj.report.style import EARLY_TO_LATE, WIDTH, legend, number, short

TITLE = "Spectral densities along the trajectory"
COLUMNS = 3
DECADES = 3  # the axis is linear below the largest |eigenvalue| times 10^-DECADES, logarithmic above
KERNEL = 0.25  # standard deviation of the smoothing kernel in units of asinh(lambda / linear width)
POINTS = 500


def draw(material: Material) -> Drawing | LeftOut:
    """Mean density over seeds at the first, the middle and the last iterate past the start."""
    groups = {name: [r for r in runs if _measured(r)] for name, runs in material.measured("spectrum").items()}
    groups = {name: runs for name, runs in groups.items() if runs}
    if not groups:
        return not_measured("spectrum", TITLE)
    picked = {name: pick(_common(runs)) for name, runs in groups.items()}
    groups = {name: runs for name, runs in groups.items() if picked[name]}
    if not groups:
        return LeftOut(f"The figure “{TITLE}” is left out: the seeds of an optimizer have no measured step in common.")
    chosen = {
        name: {step: [_measured(r)[step] for r in runs] for step in picked[name]} for name, runs in groups.items()
    }
    everything = [m.details for steps in chosen.values() for ms in steps.values() for m in ms]
    nodes = np.concatenate([_nodes(d)[0] for d in everything])
    largest = float(np.abs(nodes).max()) or 1.0
    linear = largest * 10.0**-DECADES
    grid = linear * np.sinh(
        np.linspace(
            np.arcsinh(nodes.min() / linear) - 4 * KERNEL, np.arcsinh(nodes.max() / linear) + 4 * KERNEL, POINTS
        )
    )
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
        entries = []
        for colour, (step, ms) in zip(_colours(len(chosen[name])), chosen[name].items(), strict=True):
            density = np.mean([smoothed(*_nodes(m.details), grid, linear) for m in ms], axis=0)
            highest = max(highest, float(density.max()))
            ax.plot(grid, density, color=colour, lw=1.4)
            entries.append((_when(groups[name], step), {"color": colour, "lw": 2}))
        ax.set_title(short(name, 48), color=material.looks[name].colour, fontweight="bold", fontsize=9)
        legend(ax, entries, loc="upper right", fontsize=7.5, handlelength=1.2)
        ax.tick_params(labelbottom=i + columns >= len(groups), labelleft=i % columns == 0)
        if i + columns >= len(groups):
            ax.set_xlabel("eigenvalue λ")
        if i % columns == 0:
            ax.set_ylabel("density (share per unit of λ)")
    _scale(axes[0, 0], linear, largest, grid, highest, everything)
    caption = (
        f"Density of the Hessian's eigenvalues by Lanczos quadrature, {seeds_text(groups)} (mean over seeds; the "
        f"eigenvalue axis is linear between ±{number(linear, 2)} and logarithmic beyond); the eigenvalues drawn range "
        f"from {number(float(nodes.min()))} to {number(float(nodes.max()))}."
    )
    return Drawing("densities", TITLE, caption, figure)


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
    """All probes' nodes and weights, shape (n,) each."""
    return (
        np.concatenate([np.ravel(x) for x in details["nodes"]]).astype(np.float64),
        np.concatenate([np.ravel(x) for x in details["weights"]]).astype(np.float64),
    )


def _when(runs: list[Results], step: int) -> str:
    losses = [loss for r in runs if "loss" in r.statistics and (loss := r.losses().get(step)) is not None]
    return f"step {step}" + (f", loss {number(float(np.mean(losses)))}" if losses else "")


def _colours(count: int) -> tuple[str, ...]:
    return {1: EARLY_TO_LATE[2:], 2: (EARLY_TO_LATE[0], EARLY_TO_LATE[2])}.get(count, EARLY_TO_LATE)


def _scale(ax: Any, linear: float, largest: float, grid: np.ndarray, highest: float, details: list[dict]) -> None:
    ax.set_xscale("asinh", linear_width=linear)
    decades = 10.0 ** np.arange(math.ceil(math.log10(linear)) + 1, math.floor(math.log10(largest)) + 1)
    ticks = np.concatenate([-decades[::-1], [0], decades])
    ax.set_xticks(ticks[(ticks >= grid[0]) & (ticks <= grid[-1])])
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    ax.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
    ax.set_xlim(grid[0], grid[-1])
    # One eigenvalue of P at the far end of the axis is the smallest peak worth seeing.
    size = max((d.get("size") or 0 for d in details), default=0) or 1e4
    lowest = min(0.2 / (size * KERNEL * math.sqrt(2 * math.pi) * largest), highest / 100)
    ax.set_yscale("log")
    ax.set_ylim(lowest, highest * 3)
    ax.yaxis.set_major_locator(ticker.LogLocator(numticks=7))
    ax.yaxis.set_minor_locator(ticker.NullLocator())
    ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
