import numpy as np
import pytest

from geomtraj.inference.decades import per_decade


def test_each_sign_integrates_to_its_share():
    rng = np.random.default_rng(0)
    nodes = 10.0 ** rng.uniform(-4, 0, 40) * np.where(rng.uniform(size=40) < 0.3, -1, 1)
    weights = rng.dirichlet(np.ones(40))
    grid = np.geomspace(1e-6, 1e2, 4001)
    for sign in (1, -1):
        share = per_decade(nodes, weights, grid, sign).sum() * np.log10(grid[1] / grid[0])
        assert share == pytest.approx(weights[sign * nodes > 0].sum(), rel=1e-6)


def test_a_node_peaks_where_it_stands_and_zeros_are_left_out():
    grid = np.geomspace(1e-4, 1, 401)
    density = per_decade([0.0, 0.01], [0.5, 0.5], grid)
    assert grid[density.argmax()] == pytest.approx(0.01, rel=0.02)
    assert not per_decade([0.0, 0.01], [0.5, 0.5], grid, -1).any()
