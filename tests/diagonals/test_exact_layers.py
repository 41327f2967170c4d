"""The exact diagonal from one-hot vectors at the taps, against dense Hessians."""

from __future__ import annotations

import pytest
import torch
from models import cross_entropy, split
from problems import PROBLEMS, build, classification
from torch import nn

import geomtraj as gt
from geomtraj.diagonals.exact_layers import exact_by_layer
from geomtraj.errors import ComputationError

UNEXPLAINED = {
    "rnn": {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"},
    "strange_uses": {"log_scale", "left", "right", "hidden", "prelu.weight"},
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_diagonal_is_that_of_the_dense_hessian(name):
    problem, exact = build(name)
    found = exact_by_layer(problem)
    assert (found.values - exact).abs().max() <= 1e-12 * exact.abs().max()
    assert not found.sem.any() and found.method == "exact"
    named = {line.split(": ")[0] for line in found.status.split("; ")} - {"ok"}
    assert named == UNEXPLAINED.get(name, set())


def test_a_piecewise_linear_net_takes_a_product_for_each_output():
    problem, _ = build("relu_mlp")
    assert problem.size == 156
    assert exact_by_layer(problem).cost.matvecs <= 2 * (3 + 6)  # two batches: three outputs, and what is tried first


def test_a_feed_forward_net_takes_a_product_for_each_unit():
    problem, _ = build("tanh_mlp")
    assert exact_by_layer(problem).cost.matvecs <= 2 * (9 + 9 + 7)  # two batches: units, and what is tried first


def test_a_table_with_many_rows_takes_a_product_for_each_value_that_occurs():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(50, 4), nn.Linear(4, 4)

        def forward(self, tokens):
            x = self.table(tokens)
            return (x @ x.transpose(1, 2)).tanh() @ self.mix(x).tanh()

    torch.manual_seed(0)
    model = Net().double()
    tokens, y = torch.randint(0, 50, (6, 5)), torch.randn(6, 5, 4).double()
    problem = gt.Problem(model, lambda m, b: (m(b[0]) - b[1]).square().sum(2), [(tokens, y)])
    found = exact_by_layer(problem)
    assert torch.allclose(found.values, gt.Hessian(problem).dense().diagonal(), rtol=1e-10, atol=1e-13)
    assert found.cost.matvecs < 120  # 20 at the output and at each of four taps; the table has 200 entries


@pytest.mark.parametrize("where", ["batch norm", "loss"])
def test_examples_that_depend_on_each_other_take_products_with_the_whole(where):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)] if where == "batch norm" else []
    model = nn.Sequential(*layers, nn.Linear(4 if layers else 3, 3)).double()
    x, y = torch.randn(6, 3).double(), torch.randint(0, 3, (6,))

    def mixing(model, batch):
        losses = cross_entropy(model, batch)
        return losses * losses.flip(0)

    problem = gt.Problem(model, mixing if where == "loss" else cross_entropy, split([3, 3], x, y))
    found = gt.diagonal(problem, "exact")
    assert torch.allclose(found.values, gt.Hessian(problem).dense().diagonal(), rtol=1e-10, atol=1e-13)
    assert found.cost.matvecs == (1 if where == "batch norm" else 2) * problem.size  # the two parts apart
    if where == "batch norm":
        assert found.status.startswith("a product with the whole Hessian for each entry, since '1' computes batch stat")
    else:
        assert all(
            f"{name}: a product with the whole Hessian for each entry" in found.status for name in problem.layout
        )


def test_what_would_take_too_long_is_refused_before_it_starts():
    torch.manual_seed(0)
    problem = classification(
        nn.Sequential(nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh()), 3, classes=200
    )
    with pytest.raises(ComputationError, match=f"{problem.size} entries would take about .*, more than max_seconds"):
        exact_by_layer(problem, max_seconds=1e-4)


def test_values_that_are_not_finite_stay():
    problem, _ = build("tanh_mlp")
    with torch.no_grad():
        problem.model[2].weight[0, 0] = torch.nan
    found = exact_by_layer(problem)
    assert found.values.isnan().any() and "not finite" in found.status


def test_theta_and_a_glob():
    problem, _ = build("gpt")
    some = gt.Problem(problem.model, problem.objective.loss, problem.batches, params=["qkv.*", "norm.*"])
    theta = some.theta() + 0.1
    exact = gt.Hessian(some, theta).dense().diagonal()
    assert torch.allclose(exact_by_layer(some, theta).values, exact, rtol=1e-9, atol=1e-13)
