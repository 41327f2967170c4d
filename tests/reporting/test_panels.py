import pytest

from geomtraj.reporting.panels import Mark, Panel, draw_panels


def test_names_in_the_place_of_numbers_stand_at_their_ticks():
    marks = [Mark("bars", [0, 1], [0.2, 0.8], "#000000", "share", [0.1, 0.7], [0.3, 0.9])]
    drawing = draw_panels("f", "t", "c", [Panel("p", "", "y", marks, "", [0, 1], x_names=["loss", "<b>units"])])
    (axes,) = [ax for ax in drawing.figure.axes if ax.get_visible()]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["loss", "<b>units"]
    assert list(axes.get_xticks()) == [0, 1]
    plain = draw_panels("f", "t", "c", [Panel("p", "", "y", marks, "", [0, 1])]).figure
    plain.canvas.draw()
    assert [tick.get_text() for tick in plain.axes[0].get_xticklabels()] == ["0", "1"]
    with pytest.raises(ValueError, match="number"):
        draw_panels("f", "t", "c", [Panel("p", "", "y", marks, "", [0, 1], x_names=["one"])])
