import math

import pytest
import torch

from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.tasks.two_layer_linear import (
    adam_r_med,
    closed_form_diagonal,
    closed_form_r_med,
    direct_loss,
    gaussian_r_med,
    learning_rate_unit,
    predicted_r_med,
    sgdm_r_med,
    singular_value_ratio,
)


def test_loss_is_the_papers():
    task = tasks.make("two-layer-linear", d=6, alpha=0.1)
    model = task.model(1)
    product = model.W2.weight @ model.W1.weight
    expected = 0.5 * (product - task.target).square().sum()
    torch.testing.assert_close(task.problem(model).loss(), expected.detach())
    assert task.target.abs().min() >= 0.5 and task.target.abs().max() <= 1.5 and task.target.dtype == torch.float64


def test_closed_form_diagonal_is_that_of_the_hessian():
    task = tasks.make("two-layer-linear", d=4, alpha=0.2)
    model = task.model(0)

    def loss(W1, W2):
        return 0.5 * (W2 @ W1 - task.target).square().sum()

    weights = (model.W1.weight.detach(), model.W2.weight.detach())
    hessian = torch.autograd.functional.hessian(loss, weights)
    for i, diagonal in enumerate(closed_form_diagonal(*weights)):
        size = diagonal.numel()
        torch.testing.assert_close(diagonal.reshape(-1), hessian[i][i].reshape(size, size).diagonal())
        assert diagonal.shape == weights[i].shape


def test_start_has_the_papers_standard_deviation():
    weight = tasks.make("two-layer-linear", d=100, alpha=0.5).model(0).W1.weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("d, expected", [(32, 12.5), (64, 15.2), (128, 17.9), (256, 20.6)])
def test_prediction_matches_the_maximum_of_gaussian_squares(d, expected):
    assert predicted_r_med(d) == pytest.approx(expected, abs=0.05)
    u2 = torch.randn(4000, d, generator=torch.Generator().manual_seed(0)).square()
    assert predicted_r_med(d) == pytest.approx(u2.max(dim=1).values.mean().item() / 0.4549, rel=0.05)


def test_momentum_keeps_the_gaussian_spread_and_adam_evens_it_out():
    """SGDM ends near the start's max u^2 / median u^2; Adam's entries all agree."""
    task = tasks.make("two-layer-linear", d=64)
    r_med = {"sgdm": [], "adam": []}
    for seed in range(5):
        for name in r_med:
            model = task.model(seed)
            if name == "sgdm":
                optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
            else:
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.9), eps=1e-12)
            start = None
            for step in range(3000):
                optimizer.zero_grad()
                loss = task.loss(model, task.batch(step, seed)).mean()
                start = start or loss.item()
                if loss.item() < 0.1 * start:
                    break
                loss.backward()
                optimizer.step()
            assert loss.item() < 0.1 * start
            diagonal = closed_form_diagonal(model.W1.weight, model.W2.weight)[0]
            r_med[name].append((diagonal.max() / diagonal[:, 0].quantile(0.5)).item())
    assert sum(r_med["sgdm"]) / 5 == pytest.approx(predicted_r_med(64), rel=0.35)
    assert max(r_med["adam"]) < 1.3 and min(r_med["sgdm"]) > 4


def follow(task, model, name, rate, until, hyper):
    """Trains with the direct loss until it has fallen to a fraction of the start's; the weights there."""
    kind = {"sgdm": torch.optim.SGD, "adam": torch.optim.Adam}[name]
    optimizer, start = kind(model.parameters(), lr=rate, **hyper), None
    for _ in range(20_000):
        loss = direct_loss(model.W1.weight, model.W2.weight, task.target)
        start = start or loss.item()
        if loss.item() <= until * start:
            return model.W1.weight.detach(), model.W2.weight.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError("the loss did not fall")


def test_direct_loss_and_closed_form_r_med_are_the_tasks_own():
    task = tasks.make("two-layer-linear", d=7, alpha=0.1)
    model = task.model(3)
    problem = task.problem(model)
    weights = model.W1.weight.detach(), model.W2.weight.detach()
    torch.testing.assert_close(direct_loss(*weights, task.target), problem.loss())
    theta = torch.cat([w.flatten() for w in weights])

    def flat(t):
        return direct_loss(t[:49].reshape(7, 7), t[49:].reshape(1, 7), task.target)

    dense = torch.autograd.functional.hessian(flat, theta).diagonal().abs()
    for found, block in zip(closed_form_r_med(*weights), (dense[:49], dense[49:]), strict=True):
        assert found == pytest.approx((block.max() / block.quantile(0.5)).item(), rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_momentum_carries_the_starts_own_r_med_to_the_end(seed):
    task = tasks.make("two-layer-linear", d=64)
    model = task.model(seed)
    expected = sgdm_r_med(model.W1.weight.detach(), model.W2.weight.detach(), task.target)
    weights = follow(task, model, "sgdm", 0.005 * learning_rate_unit(64), 0.1, {"momentum": 0.9})
    assert closed_form_r_med(*weights) == pytest.approx((expected, expected), rel=0.01)
    assert singular_value_ratio(weights[0]) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_adams_small_excess_is_that_of_sign_steps(seed):
    task = tasks.make("two-layer-linear", d=64)
    model = task.model(seed)
    expected = adam_r_med(model.W2.weight.detach(), task.target, 0.5)
    weights = follow(task, model, "adam", 0.1 * 64**-2.0, 0.5, {"betas": (0.9, 0.9), "eps": 1e-12})
    assert closed_form_r_med(*weights)[0] - 1 == pytest.approx(expected - 1, rel=0.25)
    assert math.isnan(adam_r_med(model.W2.weight.detach(), task.target, 0.01))


def test_law_of_max_over_median():
    """At d = 2 the median is the mean: 2 max / sum = 1 + |cos 2t| of a uniform angle t, of mean 1 + 2 / pi."""
    law = gaussian_r_med(2)
    assert law.mean == pytest.approx(1 + 2 / math.pi, rel=0.01)
    assert law.low == pytest.approx(1 + math.sin(math.pi / 2 * 0.025), abs=0.01)
    assert law.high == pytest.approx(1 + math.sin(math.pi / 2 * 0.975), abs=0.001)
    wide = gaussian_r_med(512)
    assert wide.mean == pytest.approx(predicted_r_med(512), rel=0.02) and wide.low < 16 < 36 < wide.high
    assert gaussian_r_med(16).mean > 1.1 * predicted_r_med(16)


@pytest.mark.parametrize("function", [predicted_r_med, gaussian_r_med])
def test_one_dimension_is_refused(function):
    with pytest.raises(InputError, match="d is 1"):
        function(1)


def test_singular_value_ratio():
    assert singular_value_ratio(torch.diag(torch.tensor([1.0, -4.0, 2.0]))) == pytest.approx(0.5)
