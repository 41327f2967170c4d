import itertools

import pytest
import torch
from models import cross_entropy
from standing import at, quadratic, trained
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY, Point


def batch_sharpness(**settings):
    return REGISTRY["batch_sharpness"](**settings)


def truth(problem, size):
    """The mean over all minibatches, one by one, for linear regression."""
    ((X, y),) = problem.batches
    theta, found = problem.theta(), []
    for rows in itertools.combinations(range(len(y)), size):
        x = X[list(rows)]
        g = x.T @ (x @ theta - y[list(rows)]) / size
        H = x.T @ x / size
        found.append(g @ H @ g / (g @ g))
    return float(torch.stack(found).mean())


def test_the_mean_over_all_minibatches_lies_in_the_interval():
    problem, _ = quadratic(n=12, d=3)
    expected = truth(problem, 4)
    point = Point(problem)
    found = [batch_sharpness(batch_size=4, tolerance=0.2, seed=s).measure(point) for s in range(50)]
    held = sum(o.quantities["sharpness"].low <= expected <= o.quantities["sharpness"].high for o in found)
    assert held >= 44
    counts = {o.details["batches"] for o in found}
    assert len(counts) > 3 and max(counts) > 8  # the stopping rule is at work
    mean = sum(o.quantities["sharpness"].value for o in found) / len(found)
    assert mean == pytest.approx(expected, rel=0.05)
    assert all(o.matvecs == o.details["batches"] + 8 for o in found)


def test_all_examples_give_the_exact_quotient():
    problem, H = quadratic()
    g = problem.gradient()
    outcome = batch_sharpness(batch_size=24).measure(Point(problem))
    q = outcome.quantities["sharpness"]
    assert q.low == q.value == q.high == pytest.approx(float(g @ H @ g / (g @ g))) and outcome.status == "ok"
    outcome = batch_sharpness(batch_size=100).measure(Point(problem))
    assert outcome.quantities["sharpness"] == q and "there are no more examples" in outcome.status


def test_sgd_at_its_edge_of_stability_has_batch_sharpness_near_two_over_lr(tmp_path):
    # One curved direction, and examples of equal curvature: batch sharpness is that curvature whatever the batch.
    x = torch.tensor([[1.0], [-1.0]]).double().repeat(8, 1) * 3
    y = torch.randn(16, generator=torch.Generator().manual_seed(0)).double()
    problem = gt.Problem(
        nn.Linear(1, 1, bias=False).double(), lambda m, b: 0.5 * (m(b[0])[:, 0] - b[1]).square(), [(x, y)]
    )
    lr = 2 / 9
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=lr))
    with at(run, problem, 3) as point:
        outcome = batch_sharpness(batch_size=4).measure(point)
    assert outcome.quantities["sharpness"].value == pytest.approx(2 / lr)
    assert outcome.details["thresholds"]["2/lr"] == pytest.approx(2 / lr)


def test_weights_and_minibatches_without_gradient():
    torch.manual_seed(0)
    x, y = torch.randn(10, 3).double(), torch.arange(10) % 2
    weights = torch.zeros(10).double()
    weights[:2] = 1.0
    model = nn.Linear(3, 2).double()
    problem = gt.Problem(model, lambda m, b: (cross_entropy(m, b), b[2]), [(x, y, weights)])
    outcome = batch_sharpness(batch_size=1).measure(Point(problem))
    assert "zero on" in outcome.status and outcome.quantities["sharpness"].value > 0
