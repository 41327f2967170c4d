import math

import pytest
import torch
from standing import adam, at, classification, quadratic, trained
from torch import nn

import geomtraj as gt
from geomtraj.statistics import REGISTRY

OPTIMIZERS = {
    "adam": adam,
    "heavy ball": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.05, weight_decay=0.3),
}


def directional(**settings):
    return REGISTRY["directional"](**settings)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_quantities_along_the_next_step_of_training(tmp_path, name):
    problem = classification()
    run = trained(tmp_path / "run", problem, OPTIMIZERS[name])
    for step in (1, 4):
        d = run[step + 1].theta - run[step].theta
        theta = run[step].theta
        g, H = problem.gradient(theta), gt.Hessian(problem, theta).dense()
        with at(run, problem, step) as point:
            outcome = directional().measure(point)
        expected = {
            "gain": -g @ d, "penalty": d @ H @ d / 2, "sharpness": d @ H @ d / (d @ d), "relative": d @ H @ d / (-g @ d)
        }  # fmt: skip
        assert outcome.quantities.keys() == expected.keys() and outcome.matvecs == 1
        for label, value in expected.items():
            q = outcome.quantities[label]
            assert q.low == q.value == q.high == pytest.approx(float(value), rel=1e-6), label


def test_gradient_descent_on_a_quadratic(tmp_path):
    problem, H = quadratic()
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01))
    with at(run, problem, 2) as point:
        found = directional(gauss_newton=True).measure(point).quantities
        g = point.gradient
    assert found["gain"].value == pytest.approx(0.01 * float(g @ g))
    assert found["sharpness"].value == pytest.approx(float(g @ H @ g / (g @ g)))
    assert found["relative"].value == pytest.approx(0.01 * found["sharpness"].value)
    assert found["gauss_newton"].value == pytest.approx(1)


def test_the_interval_over_minibatches_covers_the_mean_over_steps(tmp_path):
    problem, H = quadratic(n=40)
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9))
    with at(run, problem, 3) as point:
        steps = torch.stack([point.next_update(b) for b in point.minibatches(8, 500, 99)])
        truth = {
            "gain": float(-(steps @ point.gradient).mean()),
            "sharpness": float((((steps @ H) * steps).sum(1) / steps.square().sum(1)).mean()),
        }
        held = {label: 0 for label in truth}
        for seed in range(30):
            found = directional(batch_size=8, batches=8, seed=seed).measure(point).quantities
            for label, value in truth.items():
                held[label] += found[label].low <= value <= found[label].high
    assert all(count >= 25 for count in held.values()), held


def test_a_step_that_climbs_and_one_that_is_zero(tmp_path):
    problem, _ = quadratic()
    run = trained(tmp_path / "up", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.01, maximize=True))
    with at(run, problem, 2) as point:
        outcome = directional().measure(point)
    assert "do not go downhill" in outcome.status and outcome.quantities["relative"].value < 0
    run = trained(tmp_path / "still", problem, lambda m: torch.optim.SGD(m.parameters(), lr=0.0))
    with at(run, problem, 2) as point:
        outcome = directional().measure(point)
    assert not outcome.quantities and "next step is zero" in outcome.status


def test_a_loss_without_gauss_newton_matrix_says_so(tmp_path):
    model = nn.Linear(4, 3).double()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    problem = gt.Problem(model, lambda m, b: m(b).square().sum(1) + m.weight.square().sum(), [x])
    run = trained(tmp_path / "run", problem, adam)
    with at(run, problem, 2) as point:
        outcome = directional(gauss_newton=True).measure(point)
    assert outcome.status.startswith("gauss_newton: the loss depends on 'weight'")
    assert "gauss_newton" not in outcome.quantities and math.isfinite(outcome.quantities["gain"].value)
