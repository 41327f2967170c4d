import math

import pytest
import torch
from torch import nn

import geomtraj as gt
from geomtraj import tasks
from geomtraj.statistics import Point, SingularVectors
from geomtraj.statistics.uniformity import max_over_median, uniformity
from geomtraj.tasks.two_layer_linear import closed_form_r_med, direct_loss


def test_max_over_median_by_hand():
    assert max_over_median(torch.tensor([1.0, 4.0, 2.0])) == 2
    assert max_over_median(torch.tensor([1.0, 6.0, 2.0, 4.0])) == 2, "the mean of the two middle values"
    assert max_over_median(torch.tensor([0.0, 0.0, 3.0])) == math.inf
    assert math.isnan(max_over_median(torch.zeros(3))) and math.isnan(max_over_median(torch.tensor([1.0, math.nan])))


def test_singular_vectors_of_a_known_matrix():
    u, v = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([3.0, 1.0])
    found = uniformity(torch.outer(u, v))
    assert found.left == pytest.approx(16 / 4) and found.right == pytest.approx(9 / 5)
    assert found.share == pytest.approx(1)
    diagonal = uniformity(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert diagonal.left == math.inf and diagonal.share == pytest.approx(9 / 14)
    kernels = torch.outer(u, torch.arange(1.0, 9.0)).reshape(3, 2, 2, 2)
    assert uniformity(kernels).left == pytest.approx(4) and uniformity(kernels).right == pytest.approx(64 / 20.5)
    assert math.isnan(uniformity(torch.zeros(2, 2)).share)


def test_only_weights_with_two_axes_and_what_is_zero_is_said():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    nn.init.zeros_(model[1].weight)
    problem = gt.Problem(model, lambda m, x: m(x).square().sum(1), [torch.randn(5, 3)])
    outcome = SingularVectors().measure(Point(problem))
    assert list(outcome.quantities) == [f"{k}.weight {side}" for k in (0, 1) for side in ("left", "right")]
    assert outcome.status == "zero: 1.weight" and outcome.quantities["0.weight left"].low > 1


def test_parts_of_a_matrix_have_singular_vectors_of_their_own():
    model = nn.Linear(4, 6)
    problem = gt.Problem(model, lambda m, x: m(x).square().sum(1), [torch.randn(5, 4)], blocks={"weight": gt.split(2)})
    found = SingularVectors().measure(Point(problem))
    assert found.details["weight[1]"]["left"] == uniformity(model.weight[3:]).left
    assert list(found.details) == ["weight[0]", "weight[1]"]


@pytest.mark.parametrize("optimizer", ["sgdm", "adam"])
def test_in_the_rank_one_limit_they_are_the_theorems_r_1_and_r_2(optimizer):
    task = tasks.make("two-layer-linear", d=32, alpha=1.5)
    model = task.model(0)
    made = {"sgdm": (torch.optim.SGD, {"momentum": 0.9, "lr": 5e-4}), "adam": (torch.optim.Adam, {"lr": 2e-5})}
    step = made[optimizer][0](model.parameters(), **made[optimizer][1])
    first = direct_loss(model.W1.weight, model.W2.weight, task.target).item()
    for _ in range(20_000):
        loss = direct_loss(model.W1.weight, model.W2.weight, task.target)
        if loss.item() < 0.3 * first:
            break
        step.zero_grad()
        loss.backward()
        step.step()
    found = SingularVectors().measure(Point(task.problem(model)))
    r_1, r_2 = closed_form_r_med(model.W1.weight.detach(), model.W2.weight.detach())
    assert found.details["W1.weight"]["share"] > 0.999
    assert found.quantities["W2.weight right"].value == pytest.approx(r_1, rel=1e-9), "W2 is one row"
    assert found.quantities["W1.weight left"].value == pytest.approx(r_2, rel=0.01)
    assert found.quantities["W1.weight left"].value == pytest.approx(r_1, rel=0.02)
