import math
import sys

import matplotlib
import numpy as np
import pytest
from scipy.integrate import trapezoid
from synthetic import groups, results_of, run

from geomtraj.comparing.curves import curve
from geomtraj.measuring.results import Measurement, Results
from geomtraj.reporting import densities, eigenvalues, forest, losses, r_med_curves, style
from geomtraj.reporting.data import ReportFigure, Skipped, gather, listed, seeds_text
from geomtraj.reporting.figures import FIGURES
from geomtraj.reporting.lines import mean_over_seeds, points
from geomtraj.statistics.base import Quantity

NASTY = r"_$x^2$ <b>&amp; \frac{1}{0} ${"


@pytest.fixture(scope="module")
def data():
    return gather(groups(seeds=2, layers=1), 3)


@pytest.mark.parametrize("draw", FIGURES)
def test_every_figure_draws_and_says_for_how_many_seeds(draw, data):
    with style.plain_style():
        drawing = draw(data)
        assert isinstance(drawing, ReportFigure)
        svg = style.saved(drawing.figure, "svg")
    assert svg.startswith(b"<?xml") and "2 " in drawing.caption and "seed" in drawing.caption
    assert drawing.caption.endswith(".") and ". " not in drawing.caption.replace("vs. ", "")


@pytest.mark.parametrize("draw", FIGURES)
def test_a_statistic_that_was_not_measured_leaves_its_figure_out(draw):
    bare = Measurement(0, 0.0, "other", {}, {})
    with style.plain_style():
        left_out = draw(gather({"a": [Results("run", {}, [bare])]}, 3))
    assert isinstance(left_out, Skipped) and "left out" in left_out.reason


@pytest.mark.parametrize("draw", FIGURES)
def test_one_run_at_one_iterate_draws(draw):
    """The least there can be: no range to scale an axis by."""
    with style.plain_style():
        drawing = draw(gather({"a": [run("adam", steps=[0], layers=0)], "b": [run("sgdm", steps=[0], layers=0)]}, 3))
        if isinstance(drawing, ReportFigure):
            style.saved(drawing.figure, "svg")


@pytest.mark.parametrize("draw", FIGURES)
def test_names_are_plain_text_in_figures(draw):
    data = {NASTY: [run("adam", layers=0)], "日本 $": [run("sgdm", layers=0)]}
    with style.plain_style():
        svg = style.saved(draw(gather(data, 2)).figure, "svg").decode()
    assert "<b>" not in svg


def texts(draw, data):
    """All texts of a figure as they are drawn."""
    with style.plain_style():
        drawing = draw(gather(data, 2))
        style.saved(drawing.figure, "svg")
    found = drawing.figure.findobj(matplotlib.text.Text)
    assert not any(t.get_parse_math() for t in found)
    return [t.get_text() for t in found]


def test_names_are_shown_whole():
    data = {"_hidden": [run("adam", layers=0)], "$a_b$": [run("sgdm", layers=0)]}
    for draw in (losses.draw, r_med_curves.against_step, densities.draw):
        assert {"_hidden", "$a_b$"} <= set(texts(draw, data))
    assert "$a_b$ / _hidden" in texts(forest.draw, data)


def test_figures_leave_matplotlib_as_it_was(data):
    with matplotlib.rc_context({"font.size": 31.0, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        with style.plain_style():
            assert matplotlib.rcParams["font.size"] != 31.0
            losses.draw(data)
        assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_the_same_data_give_the_same_bytes(kind, data):
    with style.plain_style():
        first, second = (style.saved(losses.draw(data).figure, kind) for _ in range(2))
    assert first == second and b"Date" not in first


def test_mean_is_geometric_at_common_steps_and_losses():
    a = results_of([0, 10, 20], [4.0, 2.0, 1.0], {"w": [1.0, 2.0, 4.0]})  # w = 4 / loss
    b = results_of([0, 20], [4.0, 1.0], {"w": [4.0, 16.0]})  # w = 16 / loss
    by_step = mean_over_seeds([curve(a, "r_med"), curve(b, "r_med")], "w", 1, "step")
    assert by_step == pytest.approx(np.array([[0, 2, 1, 4], [20, 8, 4, 16]]))
    by_loss = mean_over_seeds([curve(a, "r_med"), curve(b, "r_med")], "w", 1, "loss")
    assert by_loss[:, 1] == pytest.approx(8 / by_loss[:, 0]) and by_loss[0, 0] == 4.0 and by_loss[-1, 0] == 1.0


def test_points_turn_intervals_with_the_sign():
    r = results_of([0, 1, 2], [3, 2, 1], {"w": [-2.0, 3.0, math.nan]})
    found = points(curve(r, "r_med"), "w", sign=-1)
    assert found.values.tolist() == [2.0] and found.low.tolist() == [2.0] and found.steps.tolist() == [0]


def test_smoothed_density_integrates_to_one():
    rng = np.random.default_rng(0)
    nodes, weights = np.concatenate([rng.normal(size=30) * 0.01, [5.0, -2.0]]), rng.dirichlet(np.ones(32))
    linear = 5e-3
    grid = linear * np.sinh(np.linspace(-9, 9, 4001))
    density = densities.smoothed(nodes, weights, grid, linear)
    assert trapezoid(density, grid) == pytest.approx(1.0, rel=1e-4)
    half = densities.smoothed(nodes, weights, grid, linear)[grid > 1.5]
    assert trapezoid(half, grid[grid > 1.5]) == pytest.approx(weights[30], rel=0.02)


def test_early_middle_late():
    assert densities.pick([0, 1, 2, 3, 4, 5]) == [1, 3, 5]
    assert densities.pick([0, 7]) == [0, 7] and densities.pick([]) == [] and densities.pick([3]) == [3]


def test_panels_take_matrices_first_and_the_caption_names_the_rest():
    data = groups(seeds=1, layers=5)
    data = gather(data, 2)
    shown, omitted = r_med_curves.choose(data, data.labels("r_med"))
    assert len(shown) == 16 and shown[-1] == "all" and all(data.is_matrix(s) for s in shown[:-1])
    assert {f"blocks.{i}.norm1.weight" for i in range(5)} <= set(omitted)
    assert shown[0] == "embed.weight" and "head.weight" in shown  # spread over the whole depth
    assert sorted([*shown[:-1], *omitted]) == sorted(set(data.labels("r_med")) - {"all"})


def test_values_of_the_other_sign_are_told_in_the_caption():
    data = {"a": [run("adam", layers=0, steps=[0, 5, 10])]}
    for m in data["a"][0].of("spectrum"):
        m.quantities["lambda_min"] = m.quantities["lambda_max"]
    with style.plain_style():
        drawing = eigenvalues.draw(gather(data, 2))
    assert "3 of 3 values of lambda_min have the other sign" in drawing.caption
    assert "1 of 3 values of lambda_min have not converged" in drawing.caption


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234.0, "1234"), (0.5, "0.5"), (-2.0, "−2"), (1e-5, "10⁻⁵"), (-2.5e7, "−2.5·10⁷"), (math.inf, "∞")],
)
def test_numbers_are_plain_text(value, text):
    assert style.number(value) == text


def test_small_words():
    assert style.short("a" * 50, 11) == "aaa…aaaaaaa" and style.short("a\nb") == "a b"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"
    assert seeds_text({"a": [1, 2], "b": [3]}) == "a 2 seeds, b 1 seed" and seeds_text({"a": [1]}) == "1 seed"


def test_blocks_without_a_finite_value_have_no_panel():
    values = {"dead": [math.inf, math.inf], "w": [2.0, 3.0]}
    data = {name: [results_of([0, 1], [2.0, 1.0], values)] for name in "ab"}
    with style.plain_style():
        curves, ratios = r_med_curves.against_step(gather(data, 2)), forest.draw(gather(data, 2))
    assert "infinite or missing at every iterate: dead." in curves.caption and len(curves.figure.axes) == 1
    assert "without a finite ratio: dead." in ratios.caption


def test_wide_intervals_do_not_flatten_the_curves():
    r = results_of([0, 1], [2.0, 1.0], {"w": [10.0, 20.0]})
    for m, (low, high) in zip(r.of("r_med"), [(1.0, math.inf), (15.0, 1e6)], strict=True):
        m.quantities["w"] = Quantity(m.quantities["w"].value, low, high)
    with style.plain_style():
        figure = r_med_curves.against_step(gather({"a": [r]}, 2)).figure
    bottom, top = figure.axes[0].get_ylim()
    assert 1.0 < bottom < 10.0 and 20.0 < top < 100.0


def test_stored_spectra_are_drawn_with_converged_outliers_at_their_known_mass():
    details = {
        "nodes": [[0.0, 0.1, 1.0]], "weights": [[0.5, 0.4, 0.1]], "size": 100,
        "top": [1.0, 0.1], "top_residuals": [0.0, 1.0], "bottom": [0.0], "bottom_residuals": [1.0],
    }  # fmt: skip
    nodes, masses = densities._nodes(details)
    assert masses[nodes == 1.0] == pytest.approx([0.01]) and masses.sum() == pytest.approx(1)
    assert masses[nodes == 0.0] / masses[nodes == 0.1] == pytest.approx([0.5 / 0.4])
    del details["size"]
    assert densities._nodes(details)[1].tolist() == [0.5, 0.4, 0.1]
