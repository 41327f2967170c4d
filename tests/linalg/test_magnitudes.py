import math

import numpy as np
import pytest
import torch
from spectra import matrix, operator

from geomtraj.errors import InputError
from geomtraj.layout import Layout
from geomtraj.linalg.magnitudes import magnitudes
from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.matrix import MatrixOperator


class Diagonal(SymmetricOperator):
    """diag(w): a random start sees it as it sees any matrix with these eigenvalues."""

    def __init__(self, eigenvalues):
        super().__init__(Layout({"d": (len(eigenvalues),)}), torch.float64, "cpu")
        self.w = torch.as_tensor(eigenvalues, dtype=torch.float64)

    def _matmat(self, vectors):
        return self.w[:, None] * vectors


def network_like(size, seed=0, decades=4.0, negative=0.2):
    """|lambda| spread evenly over decades, a few outliers, some eigenvalues negative."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** -rng.uniform(1.5, 1.5 + decades, size)
    sizes[:5] = [1.0, 0.7, 0.5, 0.3, 0.2]
    signs = np.where((rng.uniform(size=size) < negative) & (sizes < 0.1), -1, 1)
    return signs * sizes


def inside(bounded, truth):
    return bounded.low <= truth <= bounded.high


SPECTRA = {
    "two decades": network_like(1200, 1, 2.0),
    "four decades": network_like(1500, 2, 4.0),
    "positive": network_like(1000, 3, 3.0, 0.0),
    "flat": np.linspace(-1.0, 1.0, 900),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_intervals_hold_the_dense_numbers_over_many_seeds(name):
    w = SPECTRA[name]
    sizes = np.abs(w)
    truth = {"largest": sizes.max(), "median": np.median(sizes), "ninth": np.quantile(sizes, 0.9),
             "outliers": (sizes >= 0.1 * sizes.max()).sum(), "negative": (w < -1e-3 * sizes.max()).mean()}  # fmt: skip
    found = [magnitudes(Diagonal(w), 96, 1, 96, dense=0, seed=s) for s in range(30)]
    for key, value in truth.items():
        slack = 1e-9 * value
        held = [getattr(f, key).low - slack <= value <= getattr(f, key).high + slack for f in found]
        assert np.mean(held) >= 0.9, (key, value, [getattr(f, key) for f in found[:3]])
    if name != "four decades":
        widths = [f.median.high / f.median.low for f in found]
        assert np.median(widths) < 3 and all(f.status == "ok" for f in found)
    assert max(abs(math.log(f.median.value / truth["median"])) for f in found) < math.log(2)


def test_more_probes_narrow_the_interval():
    w = network_like(1500, 4, 3.0)
    one, many = (magnitudes(Diagonal(w), 200, n, 200, dense=0).median for n in (1, 8))
    assert many.high / many.low < one.high / one.low
    assert inside(one, np.median(np.abs(w))) and inside(many, np.median(np.abs(w)))


def test_runs_are_lengthened_where_one_node_stands_for_half_the_eigenvalues():
    rng = np.random.default_rng(5)
    w = np.concatenate([np.linspace(0.01, 1, 200), 1e-5 * rng.normal(size=600)])
    short = magnitudes(Diagonal(w), 32, 1, 32, dense=0)
    assert "32 steps do not resolve the median" in short.status and short.median.low == 0
    assert short.matvecs == 32 and inside(short.median, np.median(np.abs(w)))
    longer = magnitudes(Diagonal(w), 32, 1, 512, dense=0)
    assert longer.matvecs == 32 + 128 + 512 and longer.median.low > 0 and longer.status == "ok"
    assert inside(longer.median, np.median(np.abs(w)))


def test_a_median_of_zero_is_told_from_a_small_one():
    values = np.concatenate([np.linspace(0.1, 1, 40), np.zeros(160)])
    zero = magnitudes(operator(values, dtype=torch.float32), 64, 2, 128, dense=0)
    assert zero.median.value == zero.median.low == 0 < zero.median.high < 1e-5
    assert "zero to rounding" in zero.status and zero.largest.value == pytest.approx(1, rel=1e-5)
    dense = magnitudes(operator(values, dtype=torch.float32), dense=200)
    assert dense.exact and dense.median.value == 0 and "zero to rounding" in dense.status
    # So does a symmetric pair of nodes beside it.
    even = magnitudes(Diagonal(np.concatenate([[1.0], np.linspace(-1e-3, 1e-3, 300)])), 5, 1, 5, dense=0)
    assert even.median.low == 0 and "do not resolve" in even.status
    # A symmetric bulk puts a node at zero although no eigenvalue is there.
    bulk = np.concatenate([[1.0], np.linspace(-1e-3, 1e-3, 300)])
    small = magnitudes(Diagonal(bulk), 12, 1, 12, dense=0)
    assert small.median.value > 0 and inside(small.median, np.median(np.abs(bulk)))


def test_small_operators_are_exact():
    w = torch.linalg.eigvalsh(matrix(torch.linspace(-2, 5, 60)))
    found = magnitudes(operator(torch.linspace(-2, 5, 60)))
    assert found.exact and found.matvecs == 60 and found.status == "ok"
    assert (
        found.median.value == found.median.low == found.median.high == pytest.approx(float(w.abs().median()), rel=0.1)
    )
    assert found.median.value == pytest.approx(np.median(w.abs().numpy()))
    assert found.outliers.value == (w.abs() >= 0.5).sum() and found.negative.value == pytest.approx(17 / 60)
    np.testing.assert_allclose(found.nodes[0], w.numpy(), atol=1e-12)
    full = magnitudes(operator(torch.linspace(-2, 5, 60)), 60, 1, 60, dense=0)
    assert inside(full.median, found.median.value) and full.outliers.low <= found.outliers.value <= full.outliers.high
    assert full.nodes[0] == pytest.approx(w.numpy(), abs=1e-6)


def test_a_product_that_is_not_finite_is_told():
    bad = torch.eye(40)
    bad[3, 3] = math.nan
    for dense in (0, 100):
        found = magnitudes(MatrixOperator(bad), 8, 2, 8, dense=dense)
        assert math.isnan(found.median.value) and "finite" in found.status


def test_settings_are_checked():
    with pytest.raises(InputError, match="max_steps is 8: it must not be below steps, 16"):
        magnitudes(operator([1.0, 2.0]), 16, 1, 8)
    with pytest.raises(InputError, match="probes must be an integer of at least 1"):
        magnitudes(operator([1.0, 2.0]), 16, 0)
    assert math.isnan(magnitudes(operator([])).median.value)
