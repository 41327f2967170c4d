import math

import pytest
import torch
from models import CASES, split
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj import tasks
from geomtraj.errors import InputError
from geomtraj.statistics import Point, Units
from geomtraj.statistics.kfac.factors import kfac_factors
from geomtraj.statistics.uniformity import max_over_median
from geomtraj.statistics.units import near_dead
from geomtraj.tasks.two_layer_linear import closed_form_r_med


def measured(problem, **settings):
    return Units(**settings).measure(Point(problem))


def test_two_layers_in_closed_form():
    task = tasks.make("two-layer-linear", d=12, alpha=0.3)
    model = task.model(0)
    found = measured(task.problem(model), samples=2)
    for name, r_med in zip(
        ("W1.weight", "W2.weight"), closed_form_r_med(model.W1.weight.detach(), model.W2.weight.detach()), strict=True
    ):
        assert found.quantities[name].value == pytest.approx(r_med), "whitened inputs: K-FAC's diagonal is exact"
    assert found.details["W1.weight"]["input"] == pytest.approx(1) and found.details["W2.weight"]["output"] == 1


def hand_moments(model, x, y, w):
    """E[x^2] and the exact E[g^2] of both layers of an MLP under weighted cross entropy, by the logits' Jacobian."""
    hidden = torch.tanh(model[0](x))
    logits = model[2](hidden)
    p = logits.softmax(1)
    gradients = [torch.zeros(6).double(), torch.zeros(3).double()]
    for n in range(len(x)):
        curvature = torch.diag(p[n]) - torch.outer(p[n], p[n])
        back = model[2].weight * (1 - hidden[n] ** 2)
        gradients[0] += w[n] * torch.diag(back.T @ curvature @ back)
        gradients[1] += w[n] * torch.diag(curvature)
    inputs = [(w[:, None] * z**2).sum(0) / w.sum() for z in (x, hidden)]
    return inputs, gradients, (w[:, None] * p).sum(0)


def test_moments_of_a_weighted_mlp_in_ragged_batches_against_jacobians():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y, w = torch.randn(10, 4).double(), torch.randint(0, 3, (10,)), torch.rand(10).double()

    def loss(m, batch):
        return F.cross_entropy(m(batch[0]), batch[1], reduction="none"), batch[2]

    problem = gt.Problem(model, loss, split([7, 2, 1], x, y, w))
    found = kfac_factors(problem, problem.theta(), 4000, 0)
    with torch.no_grad():
        inputs, gradients, probability = hand_moments(model, x, y, w)
    for k, name in enumerate(("0.weight", "2.weight")):
        (part,) = found.parts[name]
        torch.testing.assert_close(part.moments[0], inputs[k])
        torch.testing.assert_close(part.gradients.mean(0)[0], gradients[k], rtol=0.06, atol=0)
    torch.testing.assert_close(found.parts["2.weight"][0].probability, probability)
    whole = gt.Problem(model, loss, [(x, y, w)])
    one, other = measured(problem, samples=400), measured(whole, samples=400)
    assert one.details["0.weight"]["input"] == pytest.approx(other.details["0.weight"]["input"])
    assert one.quantities["0.weight"].value == pytest.approx(other.quantities["0.weight"].value, rel=0.2)


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def masked(model, batch):
    logits = model(batch["tokens"])
    losses = F.cross_entropy(logits.flatten(0, 1), batch["next"].flatten(), reduction="none")
    return losses.view_as(batch["next"]), batch["mask"]


def test_frequencies_count_tokens_that_are_not_padding():
    model = Lookup().double()
    tokens = torch.tensor([[0, 0, 1, 4], [0, 2, 4, 4], [1, 3, 4, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    batch = {"tokens": tokens, "next": tokens.roll(1, 1), "mask": mask}
    batches = [{k: v[:2] for k, v in batch.items()}, {k: v[2:] for k, v in batch.items()}]
    found = kfac_factors(gt.Problem(model, masked, batches), gt.Problem(model, masked, batches).theta(), 3, 0)
    (table,), (head,) = found.parts["embedding.weight"], found.parts["head.weight"]
    torch.testing.assert_close(table.moments[0], torch.tensor([3, 2, 1, 1, 0]).double() / 7)
    with torch.no_grad():
        p = model(tokens).softmax(-1)[mask].sum(0)
        x = model.embedding(tokens)[mask].square().mean(0)
    torch.testing.assert_close(head.probability, p)
    torch.testing.assert_close(head.moments[0], x)
    details = measured(gt.Problem(model, masked, batches)).details
    assert (
        details["embedding.weight"]["frequency"] == pytest.approx(3) and details["embedding.weight"]["kind"] == "table"
    )
    assert details["head.weight"]["frequency"] == pytest.approx(max_over_median(p))
    assert details["embedding.weight"]["dead_inputs"] == 1 / 5, "a token that does not occur"


def test_rows_that_no_token_looks_up_have_no_curvature():
    model = Lookup().double()
    batch = {"tokens": torch.tensor([[0, 1, 2]]), "next": torch.tensor([[1, 2, 0]]), "mask": torch.ones(1, 3)}
    problem = gt.Problem(model, masked, [batch])
    exact = gt.diagonal(problem, "exact")
    slot = problem.layout["embedding.weight"]
    diagonal = exact.values[slot.slice].reshape(5, 3)
    assert (diagonal[3:] == 0).all() and (diagonal[:3] != 0).all()
    moments = kfac_factors(problem, problem.theta(), 4, 0)
    factorised = moments.diagonal("embedding.weight", 15).reshape(4, 5, 3)
    assert (factorised[:, 3:] == 0).all() and (factorised[:, :3] > 0).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_the_factorised_diagonal_of_a_convolution_has_the_weights_places(groups):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=groups, bias=False), nn.Flatten(), nn.Linear(4, 1)).double()
    x = torch.randn(1, 2, 2, 2).double()
    problem = gt.Problem(model, lambda m, x: m(x).square(), [x])
    moments = kfac_factors(problem, problem.theta(), 2, 0)
    exact = gt.diagonal(problem, "exact")
    size = model[0].weight.numel()
    # One example and one position: nothing to average, so that the product of the two moments is exact.
    found = moments.diagonal("0.weight", size).mean(0)
    torch.testing.assert_close(found, exact.values[problem.layout["0.weight"].slice])


def test_near_dead_units_of_a_relu_layer():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    with torch.no_grad():
        model[0].bias.fill_(5.0)
        model[0].bias[1] = -100.0  # never active
        model[2].weight[:, 4] = 1e-4  # active, but nothing depends on it
    problem = gt.Problem(model, lambda m, x: m(x).square().sum(1), [torch.randn(20, 3).double()])
    details = measured(problem).details
    assert details["0.weight"]["dead_outputs"] == pytest.approx(2 / 5)
    assert details["2.weight"]["dead_inputs"] == pytest.approx(1 / 5)
    assert details["2.weight"]["live"] < details["2.weight"]["value"]
    assert near_dead(torch.tensor([0.0, 0.0, 2.0, 1.0, 1.0, 0.05]), 0.1).tolist() == [1, 1, 0, 0, 0, 1]
    assert near_dead(torch.zeros(2), 0.01).all()


def test_tied_weights_are_one_and_what_enters_otherwise_is_told():
    outcome = measured(CASES["gpt"]().problem)
    assert outcome.details["embedding.weight"]["kind"] == "table and map"
    assert math.isnan(outcome.details["embedding.weight"]["input"])
    assert "position is left out" in outcome.status
    fallen = measured(gt.Problem(nn.Linear(2, 2), lambda m, x: m(x).square().sum(1).sqrt(), [torch.randn(4, 2)]))
    assert "gradients of the losses were taken" in fallen.status and fallen.quantities["weight"].value >= 1


def test_the_interval_is_that_of_the_random_vectors():
    problem = CASES["mlp"]().problem
    truth = {k: q.value for k, q in measured(problem, samples=4000).quantities.items()}
    held = [
        q.low <= truth[k] <= q.high
        for seed in range(40)
        for k, q in measured(problem, samples=32, seed=seed).quantities.items()
    ]
    assert 0.88 < sum(held) / len(held) <= 1


def test_nothing_is_left_behind_and_the_same_seed_gives_the_same_numbers():
    for name in ("cnn", "gpt"):
        problem = CASES[name]().problem
        model, before = problem.model.train(), torch.random.get_rng_state()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        model.eval().train()
        first = measured(problem)
        assert measured(problem) == first or str(measured(problem)) == str(first)
        assert str(measured(problem, seed=1)) != str(first)
        assert model.training and torch.equal(before, torch.random.get_rng_state())
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


def test_examples_that_depend_on_each_other_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    problem = gt.Problem(model, lambda m, x: m(x).square(), [torch.randn(6, 3)], mode="train")
    with pytest.raises(InputError, match="batch statistics"):
        measured(problem)
    with pytest.raises(InputError, match="samples must be"):
        measured(CASES["mlp"]().problem, samples=1)


def test_parts_of_a_matrix_are_rows_and_columns_of_its_moments():
    case = CASES["gpt"]()
    batches, problem = case.problem.batches, case.problem
    split = {
        "qkv.weight[v]": gt.split(2, dim=1),
        "out.weight": gt.split(2, groups=2),
        "both": gt.join("*weight[q]", "*weight[k]"),
    }
    problem = gt.Problem(problem.model, problem.objective.loss, batches, blocks=split)
    found, moments = measured(problem, samples=4), kfac_factors(problem, problem.theta(), 4, 0)
    (part,), (out,) = moments.parts["qkv.weight"], moments.parts["out.weight"]
    assert part.index.shape == (1, 12, 4)
    g, x = part.gradients.mean(0)[0], part.moments[0]
    rows = {"qkv.weight[v][0]": (g[8:], x[:2]), "qkv.weight[v][1]": (g[8:], x[2:])}
    rows["out.weight[0]"] = out.gradients.mean(0)[0, [0, 2]], out.moments[0]
    for name, (outputs, inputs) in rows.items():
        assert found.quantities[name].value == pytest.approx(max_over_median(torch.outer(outputs, inputs)))
        assert found.details[name]["input"] == pytest.approx(max_over_median(inputs))
        assert found.details[name]["output"] == pytest.approx(max_over_median(outputs))
    assert found.quantities["both"].value == pytest.approx(max_over_median(torch.outer(g[:8], x)))
    assert "qkv.weight" not in found.quantities and "qkv.weight[q]" not in found.quantities
