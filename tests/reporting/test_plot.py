import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from synthetic import groups, results_of, run, with_blocks

import geomtraj as gt
from geomtraj.errors import InputError

matplotlib.use("Agg")
DATA = groups(seeds=2, layers=1)
DRAWN = {
    "losses": lambda **kw: gt.plot.losses(DATA, **kw),
    "losses over time": lambda **kw: gt.plot.losses(DATA, against="time", **kw),
    "r_med": lambda **kw: gt.plot.r_med(DATA, "head.weight", **kw),
    "r_med over loss": lambda **kw: gt.plot.r_med(DATA, "all", "loss", **kw),
    "contrast": lambda **kw: gt.plot.contrast(gt.contrast(DATA), **kw),
    "spectrum": lambda **kw: gt.plot.spectrum(DATA["adam"][0], **kw),
    "spectrum at a step": lambda **kw: gt.plot.spectrum(DATA["adam"][0], 40, **kw),
}


@pytest.mark.parametrize("name", DRAWN)
def test_each_draws_on_the_given_axes_or_on_new_ones(name):
    before = dict(matplotlib.rcParams)
    ax = Figure().subplots()
    assert DRAWN[name](ax=ax) is ax and ax.lines and ax.get_xlabel()
    ax.figure.draw_without_rendering()
    new = DRAWN[name]()
    assert new is not ax and len(new.lines) == len(ax.lines)
    pyplot.close(new.figure)
    assert dict(matplotlib.rcParams) == before


def test_the_numbers_are_those_of_the_results():
    ax = gt.plot.r_med(DATA, "head.weight", ax=Figure().subplots())
    (mean,) = [line for line in ax.lines if line.get_color() == "#0072B2" and line.get_linewidth() == 1.6]
    values = [[q.value for _, q in r.series("r_med", "head.weight")] for r in DATA["adam"]]
    assert mean.get_ydata() == pytest.approx(np.exp(np.log(values).mean(axis=0)))
    table = gt.contrast(DATA)
    drawn = gt.plot.contrast(table, ax=Figure().subplots())
    assert any(line.get_xdata()[0] == table.primary.ratio for line in drawn.lines if len(line.get_xdata()) == 1)


def test_two_hundred_blocks_are_six_kinds():
    ax = gt.plot.contrast(gt.contrast(with_blocks(200)), ax=Figure().subplots())
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert len(names) == 7 and names[0] == "mean: the answer" and "blocks.*.mlp.up.weight (49)" in names


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gt.plot.losses([]), "must be a dict"),
        (lambda: gt.plot.losses(DATA, against="lap"), "unknown axis"),
        (lambda: gt.plot.losses({"a": [run("adam", diverged_at=0)]}), "did not diverge"),
        (lambda: gt.plot.losses({"a": [results_of([0, 1], [np.nan] * 2, {"w": [1, 2]})]}), "no run has a finite loss"),
        (lambda: gt.plot.r_med(DATA, "haed.weight"), "did you mean 'head.weight'"),
        (lambda: gt.plot.r_med(DATA, "all", "time"), "unknown axis"),
        (lambda: gt.plot.r_med({"a": [results_of([0], [1.0], {"t": [1]}, "trace")]}, "w"), "'r_med' was not measured"),
        (lambda: gt.plot.contrast(DATA), "needs what gt.contrast returned"),
        (lambda: gt.plot.spectrum(DATA), "needs the results of one run"),
        (lambda: gt.plot.spectrum(DATA["adam"][0], 41), "not measured at step 41, but at"),
        (lambda: gt.plot.spectrum(results_of([0], [1.0], {"w": [1]})), "spectrum was not measured"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not pyplot.get_fignums()
