import math

import numpy as np
import pytest
import torch
from standing import adam, at, classification, trained
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY


def eigenvectors(**settings):
    return REGISTRY["eigenvectors"](**settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("eigenvectors") / "run", classification(), adam, 6)


def leading(problem, theta, k):
    values, vectors = torch.linalg.eigh(gt.Hessian(problem, theta).dense())
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


def test_against_the_dense_hessians_of_both_iterates(run):
    problem = classification()
    (values, V), (_, W) = (leading(problem, run[s].theta, 3) for s in (4, 3))
    g = problem.gradient(run[4].theta)
    with at(run, problem, 4) as point:
        outcome = eigenvectors(k=3, tol=1e-8).measure(point)
    expected = {
        "displacement": float(1 - (V[:, 0] @ W[:, 0]) ** 2),
        "overlap": float((V.T @ W).square().sum() / 3),
        "participation": float(problem.size * V[:, 0].pow(4).sum()),
        "gradient_share": float((V.T @ g).square().sum() / (g @ g)),
    }
    for label, value in expected.items():
        q = outcome.quantities[label]
        assert q.value == pytest.approx(value, rel=1e-4, abs=1e-8), label
        assert q.low - 1e-6 <= value <= q.high + 1e-6, label
        assert outcome.quantities[f"{label}_null"].value > 0
    assert outcome.arrays["vectors"].shape == (problem.size, 3) and outcome.arrays["vectors"].dtype == np.float32
    assert outcome.arrays["values"].tolist() == pytest.approx(values.tolist())
    products = (V.T @ torch.from_numpy(outcome.arrays["vectors"]).double()).diagonal().abs()
    torch.testing.assert_close(products, torch.ones(3).double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [40, 700])
def test_nulls_are_the_means_of_random_directions(size):
    rng = torch.Generator().manual_seed(0)
    v = nn.functional.normalize(torch.randn(4000, size, generator=rng).double(), dim=1)
    assert float((size * v.pow(4).sum(1)).mean()) == pytest.approx(3 * size / (size + 2), rel=0.01)
    assert float((1 - v[::2].mul(v[1::2]).sum(1).square()).mean()) == pytest.approx(1 - 1 / size, rel=0.01)
    assert float(v[:, :5].square().sum(1).mean()) == pytest.approx(5 / size, rel=0.03)


def test_participation_of_one_entry_is_the_size_and_of_a_gaussian_vector_three(tmp_path):
    for kind in ("one", "gaussian"):
        torch.manual_seed(3)
        v = torch.zeros(2000).double() if kind == "one" else torch.randn(2000).double()
        v[7] += kind == "one"
        x = torch.stack([v, 0.01 * torch.randn(2000).double()])
        problem = gt.Problem(nn.Linear(2000, 1, bias=False).double(), lambda m, b: m(b)[:, 0].square(), [x])
        run = trained(tmp_path / kind, problem, lambda m: torch.optim.SGD(m.parameters(), lr=1e-6), 1)
        with at(run, problem, 1) as point:
            found = eigenvectors(k=1).measure(point).quantities
        assert found["participation"].value == pytest.approx(2000 if kind == "one" else 3, rel=0.1)
        assert found["displacement"].value == pytest.approx(0, abs=1e-6)


def test_stored_vectors_of_the_iterate_before_give_the_same_numbers_for_fewer_products(run, tmp_path):
    problem = classification()
    statistic = eigenvectors(k=2, tol=1e-5)
    one_by_one = gt.measure(run, problem, [statistic], progress=False, out=tmp_path / "forward").of("eigenvectors")
    (alone,) = gt.measure(run[4:5], problem, [statistic], progress=False, out=tmp_path / "alone").of("eigenvectors")
    (same,) = [m for m in one_by_one if m.step == alone.step]
    assert same.matvecs < alone.matvecs
    for label, q in same.quantities.items():
        assert q.value == pytest.approx(alone.quantities[label].value, rel=1e-4, abs=1e-6), label
    cold = gt.measure(run, problem, [eigenvectors(k=2, tol=1e-5, warm=False)], progress=False, out=tmp_path / "cold")
    for a, b in zip(one_by_one, cold.of("eigenvectors"), strict=True):
        for label, q in a.quantities.items():
            assert q.value == pytest.approx(b.quantities[label].value, rel=1e-4, abs=1e-6), (a.step, label)
    assert np.allclose(abs(np.sum(same.arrays["vectors"] * alone.arrays["vectors"], 0)), 1, atol=1e-4)


def test_the_first_iterate_has_no_one_before_it_and_a_gap_of_zero_is_said(run, tmp_path):
    with at(run, classification(), 0) as point:
        outcome = eigenvectors().measure(point)
    assert "displacement" not in outcome.quantities and "no iterate stands before" in outcome.status
    problem = gt.Problem(
        nn.Linear(6, 1, bias=False).double(), lambda m, b: m(b)[:, 0].square(), [torch.eye(6).double()]
    )
    still = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01), 2)
    with at(still, problem, 1) as point:
        found = eigenvectors(k=2).measure(point).quantities["displacement"]
    assert found.low == pytest.approx(0, abs=1e-9) and found.high == pytest.approx(1) and math.isfinite(found.value)
