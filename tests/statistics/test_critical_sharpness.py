import pytest
import torch
from standing import adam, at, classification, quadratic, trained
from torch import nn

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY


def critical(**settings):
    return REGISTRY["critical_sharpness"](**settings)


@pytest.mark.parametrize("scale", [0.02, 0.5, 1.0, 3.0, 40.0])
def test_on_a_quadratic_it_is_the_relative_sharpness_within_the_bracket(tmp_path, scale):
    problem, _ = quadratic(scale=scale)
    run = trained(tmp_path / "run", problem, lambda m: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.5))
    with at(run, problem, 3) as point:
        outcome = critical().measure(point)
        relative = REGISTRY["directional"]().measure(point).quantities["relative"].value
    found = outcome.quantities["critical"]
    assert found.value == pytest.approx(relative, rel=1 / 16)
    assert found.low <= relative <= found.high <= found.low * (1 + 1 / 16) * (1 + 1e-9)
    assert outcome.matvecs == 0


def test_with_adam_and_a_finer_tolerance_it_is_where_the_loss_comes_back_up(tmp_path):
    problem = classification()
    run = trained(tmp_path / "run", problem, adam)
    with at(run, problem, 4) as point:
        outcome = critical(tolerance=1e-3).measure(point)
        theta, d = point.theta, point.next_update()
        eta = 2 / outcome.quantities["critical"].value
        assert float(problem.loss(theta + eta * d)) == pytest.approx(point.loss, rel=1e-3)
        assert all(float(problem.loss(theta + share * eta * d)) < point.loss for share in (0.1, 0.5, 0.9))
        assert outcome.details["losses"] < 20 and critical().measure(point).details["losses"] <= 9


def test_reasons(tmp_path):
    model = nn.Linear(2, 1, bias=False).double()
    problem = gt.Problem(model, lambda m, b: m(b)[:, 0], [torch.ones(3, 2).double()])
    for rate, sentence in ((0.1, "does not rise up to"), (-0.1, "however short"), (0.0, "next step is zero")):
        group = {"lr": 0.1, "maximize": rate < 0} if rate else {"lr": 0.0}
        run = trained(tmp_path / f"run{rate}", problem, lambda m, g=group: torch.optim.SGD(m.parameters(), **g))
        with at(run, problem, 1) as point:
            outcome = critical().measure(point)
        assert sentence in outcome.status and not outcome.quantities
    with at(run, problem, 1) as point, pytest.raises(InputError, match="tolerance is 2"):
        critical(tolerance=2.0).measure(point)
