import pytest
import torch

from geomtraj import tasks
from geomtraj.tasks.two_layer_linear import closed_form_diagonal, predicted_r_med


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
