"""How figures look: colours, fonts, axes, and the bytes they are saved as. Text is always plain, never markup."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Told apart with any colour vision. Source: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
EARLY_TO_LATE = ("#8FB8DE", "#3F7F93", "#132B43")
PLACES = re.compile(rb' (?:d|x|y)="[^"]*"')
LONG = re.compile(rb"(\.\d\d)\d+")
"""Places in an SVG, which need no more than a hundredth of a point."""
WIDTH = 10.0  # inches, the width of a page's column

RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 8.5,
    "axes.unicode_minus": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "geomtraj",
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": "#333333",
    "xtick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.color": "#333333",
    "ytick.labelsize": 7.5,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Look:
    """The colour and the dashes of one optimizer, the same in every figure."""

    colour: str
    dashes: str = "-"


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each group, by order."""
    return {
        name: Look(COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]) for i, name in enumerate(names)
    }


@contextmanager
def plain_style() -> Iterator[None]:
    """Matplotlib's own settings with those of the report; what the user had set comes back afterwards."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        defaults: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
        matplotlib.rcParams.update(defaults | RC)
        fonts = logging.getLogger("matplotlib.font_manager")
        level = fonts.level
        fonts.setLevel(logging.ERROR)
        try:
            yield
        finally:
            fonts.setLevel(level)


def saved(figure: Figure, kind: str) -> bytes:
    """The figure as "svg", "pdf" or "png": the same bytes for the same data."""
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, dpi=150)
    content = buffer.getvalue()
    return PLACES.sub(lambda found: LONG.sub(rb"\1", found[0]), content) if kind == "svg" else content


def short(text: object, most: int = 32) -> str:
    """Text on one line, its middle left out where it is too long for a figure."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    if len(line) <= most:
        return line
    head = (most - 1) // 3
    return f"{line[:head]}…{line[len(line) - (most - 1 - head) :]}"


def number(value: float, digits: int = 3) -> str:
    """A number as plain text, with superscripts where it is very large or small."""
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞" if value < 0 else "not known"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{digits}g}"
        return (f"{value:.0f}" if "e" in text else text).replace("-", "−")
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    mantissa = f"{value / 10**exponent:.{digits}g}".replace("-", "−")
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {"1": power, "−1": f"−{power}"}.get(mantissa, f"{mantissa}·{power}")


def log_axis(axes: Axes, which: Literal["x", "y"], low: float, high: float) -> None:
    """A log scale from low to high, ticks in plain numbers."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    if high / low < 8:
        axis.set_major_locator(ticker.MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,), numticks=6))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x)))
    axis.set_minor_locator(ticker.NullLocator())


def step_axis(axes: Axes, steps: np.ndarray) -> None:
    """Optimizer steps from 0 on: linear, or logarithmic past the first one where the iterates are spaced so."""
    positive = np.unique(steps[steps > 0])
    axes.set_xlabel("step")
    if positive.size > 2 and np.median(positive) < 0.3 * positive.max():
        first, last = float(positive.min()), float(positive.max())
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
        decades = 10.0 ** np.arange(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)
        axes.set_xticks([0, first, *decades[(decades > 2.5 * first) & (decades < last / 2.5)], last])
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlim(-0.15 * first, last * 1.1)
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(nbins=4, integer=True))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: number(x, 6)))


def legend(where: Any, entries: Sequence[tuple[str, dict[str, Any]]], **options: Any) -> None:
    """A legend of (text, line properties) on a figure or on axes.

    Texts may begin with an underscore, which matplotlib takes for "leave out": they are set after the entries are made.
    """
    handles = [Line2D([], [], **properties) for _, properties in entries]
    made = where.legend(handles, [f"entry {i}" for i in range(len(entries))], **options)
    for drawn, (text, _) in zip(made.get_texts(), entries, strict=True):
        drawn.set_text(short(text, 60))


def group_legend(figure: Figure, groups: dict[str, Look]) -> None:
    """The legend of the optimizers above all panels."""
    entries = [(name, {"color": look.colour, "ls": look.dashes, "lw": 2}) for name, look in groups.items()]
    legend(figure, entries, loc="outside upper left", ncols=min(len(entries), 6))
