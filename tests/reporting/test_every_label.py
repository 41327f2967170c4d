import html

import numpy as np
import pytest
from synthetic import results_of

from geomtraj.measuring.results import Measurement, Results
from geomtraj.reporting import every_label, report, style
from geomtraj.reporting.data import ReportFigure, Skipped, gather

STEPS = [0, 10, 20, 40]


def made(values, statistic, seed=0, thresholds=None):
    results = results_of(STEPS, [4.0, 3.0, 2.0, 1.0], values, statistic, seed=seed, optimizer="adam")
    for m in results.of(statistic):
        m.details.update({"thresholds": thresholds} if thresholds else {})
    return results


def lines_of(drawing, panel=0):
    return [line for line in drawing.figure.axes[panel].lines if line.get_linestyle() == ":"]


def test_thresholds_and_nulls_are_dotted_in_the_panel_of_their_label():
    values = {"sharpness": [10.0, 20.0, 38.0, 37.0], "threshold": [40.0] * 4}
    data = gather({"a": [made(values, "preconditioned_sharpness", s) for s in (0, 1)]}, 2)
    with style.plain_style():
        drawing = every_label.draw(data, "preconditioned_sharpness")
    assert isinstance(drawing, ReportFigure) and len([ax for ax in drawing.figure.axes if ax.get_visible()]) == 1
    dotted = lines_of(drawing)
    assert len(dotted) == 2 and dotted[0].get_ydata().tolist() == [40.0] * 4
    assert drawing.figure.axes[0].get_ylim()[1] > 40 and "dotted: the threshold" in drawing.caption
    values = {"pc1": [0.9, 0.8, 0.8, 0.7], "pc1_null": [0.81] * 4, "turning": [1.0, 1.2, 1.3, 1.0]}
    with style.plain_style():
        drawing = every_label.draw(gather({"a": [made(values, "path")]}, 2), "path")
    assert [ax.get_title("left") for ax in drawing.figure.axes if ax.get_visible()] == ["pc1", "turning"]
    assert len(lines_of(drawing)) == 1 and not lines_of(drawing, 1)


def test_thresholds_in_details_and_values_that_are_not_positive():
    data = gather({"a": [made({"sharpness": [1.0, -2.0, 3.0, 4.0]}, "batch_sharpness", thresholds={"2/lr": 5.0})]}, 2)
    with style.plain_style():
        drawing = every_label.draw(data, "batch_sharpness")
    assert lines_of(drawing)[0].get_ydata().tolist() == [5.0] * 4 and "1 values are not positive" in drawing.caption
    negative = gather({"a": [made({"x": [-1.0] * 4}, "mine")]}, 2)
    with style.plain_style():
        assert isinstance(every_label.draw(negative, "mine"), ReportFigure)
        empty = Results("run", {}, [Measurement(0, 0.0, "mine", {}, {})])
        left_out = every_label.draw(gather({"a": [empty]}, 2), "mine")
    assert isinstance(left_out, Skipped)


def test_many_labels_are_cut_and_counted():
    values = {f"layers.{i}.weight": np.linspace(1, 2, 4) for i in range(20)} | {"all": [1.0] * 4}
    with style.plain_style():
        drawing = every_label.draw(gather({"a": [made(values, "sqrt_trace")]}, 2), "sqrt_trace")
    assert len(drawing.figure.axes) == every_label.PANELS and "9 more labels" in drawing.caption


@pytest.mark.parametrize("statistic", ["directional", "somebodys own"])
def test_the_page_has_them(tmp_path, statistic):
    groups = {
        name: [made({"gain": [1.0, 0.5, 0.2, 0.1 + 0.1 * s]}, statistic, s) for s in (0, 1)]
        for name in ("adam", "sgdm")
    }
    page = report(groups, tmp_path / "report.html")
    assert (tmp_path / "report_files" / "figures" / f"statistic_{statistic.replace(' ', '_')}.svg").exists()
    assert every_label._title(statistic) in html.unescape(page.read_text())
