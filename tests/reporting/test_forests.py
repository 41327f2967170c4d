import math

import numpy as np

from geomtraj.inference import Interval
from geomtraj.reporting import style
from geomtraj.reporting.data import ReportFigure, Skipped
from geomtraj.reporting.forests import Estimates, Forest, draw_forests

FIRM = Estimates(
    "firm",
    "#0072B2",
    {"u": Interval(2.0, 1.5, 3.0), "v": Interval(0.5, 0.2, 1.4), "mean": Interval(1.1, math.nan, math.nan)},
)
WILD = Estimates(
    "wild",
    "#D55E00",
    {"u": Interval(math.inf, 1.0, math.inf), "v": Interval(3.0, 0.0, math.inf), "mean": Interval(-1.0, -2.0, 0.0)},
)


def lines(ax):
    return [tuple(np.round(segment[:, 0], 6)) for c in ax.collections for segment in c.get_segments()]


def test_ratios_intervals_and_what_leaves_out_one_are_drawn():
    with style.plain_style():
        drawn = draw_forests("f", "A title", "A caption", [Forest("p", "ratio", ["u", "v", "mean"], [FIRM], apart=1)])
    assert isinstance(drawn, ReportFigure)
    ax = drawn.figure.axes[0]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [float(p.get_xdata()[0]) for p in points] == [2.0, 0.5, 1.1]
    assert [p.get_markerfacecolor() for p in points] == [FIRM.colour, "white", "white"]
    assert lines(ax) == [(1.5, 3.0), (0.2, 1.4)]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["u", "v", "mean"]
    assert any(list(np.asarray(line.get_ydata(), float)) == [1.5, 1.5] for line in ax.lines)


def test_values_that_cannot_be_drawn_are_left_out_and_open_intervals_are_cut():
    panels = [Forest("p", "ratio", ["u", "v", "mean"], [FIRM, WILD]), Forest("empty", "ratio", [], [])]
    with style.plain_style():
        drawn = draw_forests("f", "A title", "A caption", panels, columns=2)
        ax = drawn.figure.axes[0]
        points = [line for line in ax.lines if line.get_marker() == "o" and line.get_color() == WILD.colour]
        assert [float(p.get_xdata()[0]) for p in points] == [3.0]
        low, high = ax.get_xlim()
        assert 0 < low < 0.2 and 3 < high < 10
        assert np.allclose(lines(ax)[-1], (low, high))
        assert len(style.saved(drawn.figure, "svg")) > 1000
    assert len([a for a in drawn.figure.axes if a.get_visible()]) == 1


def test_a_figure_without_a_ratio_says_so():
    found = draw_forests("f", "A title", "A caption", [Forest("p", "ratio", ["u"], [Estimates("a", "#000000", {})])])
    assert isinstance(found, Skipped) and "A title" in found.reason
    assert isinstance(draw_forests("f", "A title", "A caption", []), Skipped)
