import json
import math

import matplotlib
import numpy as np
import pytest

from geomtraj.errors import InputError
from geomtraj.reporting import style
from geomtraj.reporting.analysis import Content, Sheet, analysis_page
from geomtraj.reporting.data import ReportFigure, Skipped
from geomtraj.reporting.panels import Mark, Panel, draw_panels
from geomtraj.reporting.summary import Answer

NASTY = "<script>alert(1)</script>$x$"


def draw():
    marks = [Mark("line", [1, 2], [1.0, 3.0], "#000000", NASTY)]
    return draw_panels("one", NASTY, NASTY, [Panel(NASTY, NASTY, NASTY, marks)])


def write(folder, title="A question"):
    content = Content(
        title,
        NASTY,
        [Answer("Claim", "It does not hold here.", ["One number.", "Another."])],
        [draw, lambda: Skipped("The figure “x” is left out: no runs.")],
        [
            Sheet("shown", "Shown", ["name", "value"], [[NASTY, 0.123456789012345], [None, math.nan]], "A note."),
            Sheet("hidden", "Hidden", ["n"], [[123456789]], shown=False),
        ],
    )
    return analysis_page(
        folder / "new" / "index.html",
        content,
        ["A run diverged."],
        {"command": NASTY, "seeds": [0, 1]},
    )


def test_the_page_holds_everything_and_escapes_it(tmp_path):
    page = write(tmp_path, NASTY)
    text = page.read_text()
    assert text.count("<script") == 1 and text.count("&lt;script&gt;") >= 6
    for words in (
        "It does not hold here.",
        "<li>One number.</li><li>Another.</li>",
        "A run diverged.",
        "“x” is left out",
        "A note.",
    ):
        assert words in text
    assert "0.1235" in text and "123456789" not in text and text.count("<td>–</td>") == 2
    assert (page.parent / "tables" / "shown.csv").read_text().splitlines()[1].endswith("0.123456789012345")
    assert (page.parent / "tables" / "hidden.csv").read_text() == "n\n123456789\n"
    assert (page.parent / "figures" / "one.pdf").exists() and (page.parent / "figures" / "one.svg").exists()
    assert json.loads((page.parent / "provenance.json").read_text())["seeds"] == [0, 1]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    for file in first.parent.rglob("*.*"):
        assert file.read_bytes() == (second.parent / file.relative_to(first.parent)).read_bytes()


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "new").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*choose another path"):
        write(tmp_path)


def figure(marks, log):
    with style.plain_style():
        drawing = draw_panels("n", "t", "c", [Panel("p", "x", "y", marks, log)])
        if isinstance(drawing, ReportFigure):
            style.saved(drawing.figure, "svg")
    return drawing


def test_values_that_cannot_stand_on_a_log_axis_are_left_out():
    drawing = figure([Mark("dots", [1, 2, 3, 4], [-1.0, math.nan, 5.0, 7.0], "#000000")], "xy")
    (line,) = [artist for artist in drawing.figure.axes[0].lines if len(artist.get_xdata())]
    np.testing.assert_array_equal(line.get_xdata(), [3, 4])
    assert isinstance(figure([Mark("dots", [1], [-1.0], "#000000")], "y"), Skipped)


def test_a_mean_without_an_interval_is_drawn_all_the_same():
    mark = Mark("bars", [1, 2], [5.0, 6.0], "#000000", "m", [math.nan, -4.0], [math.nan, 7.0])
    drawing = figure([mark], "y")
    segments = drawing.figure.axes[0].findobj(matplotlib.collections.LineCollection)[0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [[5.0, 5.0], [6.0, 7.0]]
