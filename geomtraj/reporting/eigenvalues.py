"""Figure: top and bottom eigenvalues of the Hessian, against step and against loss."""

from __future__ import annotations

from matplotlib.figure import Figure

from geomtraj.measuring.results import Results
from geomtraj.reporting.lines import draw_lines, key
from geomtraj.reporting.material import Drawing, LeftOut, Material, not_measured, seeds_text
from geomtraj.reporting.style import WIDTH, group_legend

TITLE = "Top and bottom eigenvalues"
ENDS = (("lambda_max", 1, "λ_max"), ("lambda_min", -1, "−λ_min"))


def draw(material: Material) -> Drawing | LeftOut:
    """The largest eigenvalue and minus the smallest one on log axes."""
    groups = material.measured("spectrum")
    if not groups:
        return not_measured("spectrum", TITLE)
    overs = ("step", "loss") if material.measured("loss") else ("step",)
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    axes = figure.subplots(2, len(overs), squeeze=False)
    for row, (label, sign, axis_label) in zip(axes, ENDS, strict=True):
        for ax, over in zip(row, overs, strict=True):
            draw_lines(ax, material, "spectrum", label, over, sign)
        row[0].set_ylabel(axis_label)
    group_legend(figure, {name: material.looks[name] for name in groups})
    caption = (
        f"Largest eigenvalue of the Hessian (top) and minus the smallest (bottom) along the trajectories, "
        f"{seeds_text(groups)} ({key(groups, 'the residual norm as interval')}){_doubts(groups)}."
    )
    return Drawing("eigenvalues", TITLE, caption, figure)


def _doubts(groups: dict[str, list[Results]]) -> str:
    """What the reader must know of single points: not converged, or of the other sign."""
    measured = [m for group in groups.values() for r in group for m in r.of("spectrum")]
    parts = []
    for label, sign, _ in ENDS:
        series = [(m, m.quantities[label]) for m in measured if label in m.quantities]
        loose = sum(f"{label} has not converged" in m.status for m, _ in series)
        if loose:
            parts.append(f"{loose} of {len(series)} values of {label} have not converged")
        hidden = sum(sign * q.value <= 0 for _, q in series)
        if hidden:
            parts.append(f"{hidden} of {len(series)} values of {label} have the other sign and are not drawn")
    return "".join(f"; {part}" for part in parts)
