import numpy as np
import pytest
import torch
from models import CASES
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point
from geomtraj.statistics.l1_norm import median_of_cauchy


def l1_norm(**settings):
    return REGISTRY["l1_norm"](**settings)


@pytest.mark.parametrize("width", [5, 7, 15])
def test_the_expected_median_of_cauchy_variables(width):
    drawn = np.abs(np.random.default_rng(0).standard_cauchy((400_000, width)))
    assert median_of_cauchy(width) == pytest.approx(np.median(drawn, 1).mean(), rel=0.01)


def test_the_interval_covers_the_norm_of_the_dense_hessian():
    case = CASES["mlp"]()
    H = case.hessian()
    norm, top = float(H.abs().sum()), float(torch.linalg.eigvalsh(H).abs().max())
    point = Point(case.problem)
    found = [l1_norm(seed=seed).measure(point) for seed in range(40)]
    for label, truth in (("norm", norm), ("ratio", norm / (len(H) * top))):
        quantities = [o.quantities[label] for o in found]
        assert sum(q.low <= truth <= q.high for q in quantities) >= 34, label
        assert np.mean([q.value for q in quantities]) == pytest.approx(truth, rel=0.05)
    assert found[0].details["spectral_norm"] == pytest.approx(top, rel=1e-3)
    assert found[1].matvecs == 56  # the eigenvalue is shared


def test_a_zero_hessian_and_settings():
    flat = gt.Problem(nn.Linear(3, 1).double(), lambda m, b: m(b)[:, 0], [torch.ones(2, 3).double()])
    outcome = l1_norm().measure(Point(flat))
    assert not outcome.quantities and "the Hessian is zero" in outcome.status
    for settings in ({"width": 6}, {"width": 3}, {"groups": 1}):
        with pytest.raises(InputError, match="odd width >= 5"):
            l1_norm(**settings).measure(Point(flat))
