import numpy as np
import pytest
from synthetic import run

from geomtraj.reporting import report
from geomtraj.reporting.thinning import thinned


@pytest.mark.parametrize("n", [0, 1, 5, 40, 41, 5000])
@pytest.mark.parametrize("most", [4, 40, 160])
def test_no_more_than_asked_for_with_both_ends_and_the_extremes(n, most):
    y = np.random.default_rng(n).normal(size=n)
    kept = thinned(np.arange(n), y, most)
    assert len(kept) <= most and (np.diff(kept) > 0).all()
    if n <= most:
        assert kept.tolist() == list(range(n))
    else:
        assert {0, n - 1, int(y.argmin()), int(y.argmax())} <= set(kept.tolist())


def test_what_has_no_place_is_not_chosen():
    x, y = np.arange(1000.0), np.zeros(1000)
    x[500], y[500] = np.nan, 1e9
    assert 500 not in thinned(x, y, 20)


def test_a_page_about_thousands_of_iterates_stays_small(tmp_path):
    steps = list(range(2000))
    few = report({o: [run(o, steps=steps[::100], layers=0)] for o in ("adam", "sgdm")}, tmp_path / "few.html")
    many = report({o: [run(o, steps=steps, layers=0)] for o in ("adam", "sgdm")}, tmp_path / "many.html")
    assert many.stat().st_size < 3 * few.stat().st_size < 3e6
    assert (tmp_path / "many_files" / "tables" / "measurements.csv").read_text().count("\n") > 2 * 2000 * 8
