import pytest
import torch
from models import cross_entropy
from standing import classifier, quadratic
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point


def noise_scale(**settings):
    return REGISTRY["noise_scale"](**settings)


def truth(problem):
    """Both scales of linear regression from all examples' gradients."""
    ((X, y),) = problem.batches
    theta = problem.theta()
    G = X * (X @ theta - y)[:, None]
    g, H = G.mean(0), X.T @ X / len(y)
    apart = G - g
    return float(apart.square().sum(1).mean() / (g @ g)), float(((apart @ H) * apart).sum(1).mean() / (g @ H @ g))


def test_with_all_examples_both_scales_are_exact():
    problem, _ = quadratic()
    simple, curved = truth(problem)
    found = noise_scale(samples=24, products=24).measure(Point(problem))
    for label, value in (("simple", simple), ("curved", curved)):
        q = found.quantities[label]
        assert q.low == q.value == q.high == pytest.approx(value), label
    assert found.matvecs == 25 and found.status == "ok"


def test_the_interval_covers():
    problem, _ = quadratic(n=200)
    expected, point = dict(zip(("simple", "curved"), truth(problem), strict=True)), Point(problem)
    held = {"simple": 0, "curved": 0}
    for seed in range(40):
        found = noise_scale(samples=30, products=30, seed=seed).measure(point).quantities
        for label in held:
            held[label] += found[label].low <= expected[label] <= found[label].high
    assert all(count >= 34 for count in held.values()), held


def test_weights_of_examples_count():
    torch.manual_seed(1)
    model, x, y = classifier(), torch.randn(9, 4).double(), torch.arange(9) % 3
    w = torch.linspace(0.5, 2, 9).double()
    problem = gt.Problem(
        model, lambda m, b: (cross_entropy(m, b), b[2]), [(x[:5], y[:5], w[:5]), (x[5:], y[5:], w[5:])]
    )
    theta = problem.theta()
    singles = [gt.Problem(model, cross_entropy, [(x[i : i + 1], y[i : i + 1])]).gradient(theta) for i in range(9)]
    G = torch.stack(singles) * (9 * w / w.sum())[:, None]
    g = problem.gradient()
    torch.testing.assert_close(G.mean(0), g)
    found = noise_scale().measure(Point(problem)).quantities["simple"].value
    assert found == pytest.approx(float((G - g).square().sum(1).mean() / (g @ g)))


def test_reasons():
    problem, _ = quadratic(n=1)
    assert noise_scale().measure(Point(problem)).quantities["simple"].value == pytest.approx(0, abs=1e-20)
    flat = gt.Problem(nn.Linear(2, 1).double(), lambda m, b: 0 * m(b)[:, 0], [torch.ones(3, 2).double()], check=False)
    outcome = noise_scale().measure(Point(flat))
    assert not outcome.quantities and "gradient is zero" in outcome.status
    hill = gt.Problem(nn.Linear(2, 1, bias=False).double(), lambda m, b: -m(b)[:, 0].square(), [torch.eye(2).double()])
    outcome = noise_scale().measure(Point(hill))
    assert outcome.quantities.keys() == {"simple"} and "does not curve up" in outcome.status
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).double()
    normed = gt.Problem(model, lambda m, b: m(b).square().sum(1), [torch.randn(6, 2).double()], mode="train")
    with pytest.raises(InputError, match="takes statistics of the batch"):
        noise_scale().measure(Point(normed))
