"""Single figures on one's own axes, drawn as the report draws them: `gt.plot.losses(groups, ax=ax)` and its like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from geomtraj.comparing import Table
from geomtraj.comparing.alignment import check_groups
from geomtraj.errors import InputError, unknown_name
from geomtraj.measuring import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from geomtraj.reporting.data import ReportData

Groups = Mapping[str, Sequence[Results]]
AGAINST = ("step", "loss")


def losses(groups: Groups, ax: Axes | None = None, *, against: Literal["step", "time"] = "step") -> Axes:
    """The evaluation loss of every run, thick, and its training log, thin.

    Args:
        groups: Name of the optimizer -> the results of its runs, as for `gt.report`.
        ax: Where to draw; new axes if left out.
        against: "step", or "time" in seconds of training.

    Returns:
        The axes.

    Raises:
        InputError: Groups of another form, or without a finite loss; an unknown `against`.
    """
    from geomtraj.reporting.losses import draw_losses

    if against not in ("step", "time"):
        raise unknown_name("axis (against)", str(against), ("step", "time"))
    data = _material(groups, "loss")
    runs = [r for group in data.measured("loss").values() for r in group]
    if not any(math.isfinite(loss) for r in runs for loss in r.losses().values()):
        raise InputError("no run has a finite loss: there is nothing to draw.")
    ax = _axes(ax)
    draw_losses(ax, data, against)
    return _named(ax, data)


def r_med(groups: Groups, label: str, against: str = "step", ax: Axes | None = None) -> Axes:
    """R_med of one block along the runs: mean over seeds, their range, and single measurements with their intervals.

    Args:
        groups: Name of the optimizer -> the results of its runs.
        label: The block, or "all".
        against: "step" or "loss".
        ax: Where to draw; new axes if left out.

    Returns:
        The axes.

    Raises:
        InputError: Groups of another form, a block that was not measured, an unknown `against`.
    """
    from geomtraj.reporting.lines import draw_lines

    if against not in AGAINST:
        raise unknown_name("axis (against)", str(against), AGAINST)
    data = _material(groups, "r_med")
    if label not in data.labels("r_med"):
        raise unknown_name("block of r_med", str(label), data.labels("r_med"))
    ax = _axes(ax)
    draw_lines(ax, data, "r_med", label, against)
    ax.set(title=label, ylabel="R_med")
    return _named(ax, data)


def contrast(table: Table, ax: Axes | None = None) -> Axes:
    """The ratios of a contrast with their intervals: the answer on top, then each kind of layer.

    Args:
        table: What `gt.contrast` returned.
        ax: Where to draw; new axes if left out.

    Returns:
        The axes.

    Raises:
        InputError: It is no table, or no ratio in it is finite.
    """
    from geomtraj.reporting.forest import draw_table

    if not isinstance(table, Table):
        raise InputError(f"plot.contrast needs what gt.contrast returned, not {type(table).__name__}.")
    if not any(row.n for row in table.overall()):
        raise InputError("no ratio of the table is finite: there is nothing to draw.")
    ax = _axes(ax)
    draw_table(ax, table)
    return ax


def spectrum(results: Results, step: int | None = None, ax: Axes | None = None) -> Axes:
    """The spectral density of the Hessian at one iterate, or early, midway and late.

    Args:
        results: Of one run.
        step: Which iterate; three of them if left out.
        ax: Where to draw; new axes if left out.

    Returns:
        The axes.

    Raises:
        InputError: The spectrum was not measured, or not at that step.
    """
    from geomtraj.reporting.densities import draw_run, steps_of

    if not isinstance(results, Results):
        raise InputError(f"plot.spectrum needs the results of one run, not {type(results).__name__}.")
    steps = steps_of(results, step)
    ax = _axes(ax)
    draw_run(ax, results, steps)
    return ax


def _material(groups: Groups, statistic: str) -> ReportData:
    from geomtraj.reporting.data import ReportData
    from geomtraj.reporting.style import looks

    checked = check_groups(groups)
    sound = {name: [r for r in runs if not r.diverged] for name, runs in checked.items()}
    data = ReportData(checked, {n: r for n, r in sound.items() if r}, looks(list(checked)), {}, {})
    if not data.measured(statistic):
        raise InputError(f"{statistic!r} was not measured in any run that did not diverge.")
    return data


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(layout="constrained")[1]


def _named(ax: Axes, data: ReportData) -> Axes:
    """With a legend of the groups."""
    from geomtraj.reporting.style import legend

    entries = [(n, {"color": data.looks[n].colour, "ls": data.looks[n].dashes, "lw": 2}) for n in data.groups]
    legend(ax, entries)
    return ax
