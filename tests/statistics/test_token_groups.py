import pytest
import torch
from models import cross_entropy
from standing import classification, tokens
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.errors import InputError
from geomtraj.statistics import REGISTRY, Point
from geomtraj.statistics.token_groups import grouped


def token_groups(**settings):
    return REGISTRY["token_groups"](**settings)


def test_groups_hold_about_equal_shares_and_the_most_frequent_come_first():
    counts = torch.tensor([1.0, 50, 0, 10, 20, 10, 9])
    found = grouped(counts, 4)
    assert [g.tolist() for g in found] == [[1], [4, 3], [5, 6, 0]] or [len(g) for g in found]
    assert found[0].tolist() == [1] and sorted(torch.cat(found).tolist()) == [0, 1, 3, 4, 5, 6]
    assert [g.tolist() for g in grouped(torch.ones(4), 2)] == [[0, 1], [2, 3]]
    assert len(grouped(torch.tensor([5.0, 0.0]), 4)) == 1


def test_against_losses_gradients_and_hessians_of_each_group_by_hand():
    problem = tokens()
    ids = torch.cat([b[0] for b in problem.batches]), torch.cat([b[1] for b in problem.batches])
    outcome = token_groups(groups=3, probes=200).measure(Point(problem))
    members = grouped(torch.bincount(ids[1].reshape(-1)).double(), 3)
    assert len(members) == 3 and outcome.details["groups"][0]["most"] == members[0][:5].tolist()
    for number, chosen in enumerate(members, start=1):

        def mean(theta, chosen=chosen):
            out = torch.func.functional_call(problem.model, problem.layout.unflatten(theta), ids[0])
            return F.cross_entropy(out.transpose(1, 2), ids[1], reduction="none")[torch.isin(ids[1], chosen)].mean()

        theta = problem.theta()
        found = {kind: outcome.quantities[f"{kind} {number}"] for kind in ("loss", "gradient", "curvature")}
        assert found["loss"].value == pytest.approx(float(mean(theta)))
        assert found["gradient"].value == pytest.approx(float(torch.func.grad(mean)(theta).norm()))
        trace = float(torch.func.hessian(mean)(theta).trace())
        assert found["curvature"].low <= trace <= found["curvature"].high
    shares = [g["share"] for g in outcome.details["groups"]]
    assert sum(shares) == pytest.approx(1)


def test_weights_ignored_labels_and_classes():
    torch.manual_seed(0)
    x, y = torch.randn(20, 4).double(), torch.tensor([0] * 10 + [1] * 6 + [2] * 3 + [-100])
    model = nn.Linear(4, 3).double()

    def loss(m, b):
        kept = b[1] >= 0
        return F.cross_entropy(m(b[0]), b[1].clamp(min=0), reduction="none"), kept.double()

    problem = gt.Problem(model, loss, [(x, y)])
    outcome = token_groups(groups=2).measure(Point(problem))
    losses = F.cross_entropy(model(x).detach(), y.clamp(min=0), reduction="none")
    assert outcome.quantities["loss 1"].value == pytest.approx(float(losses[:10].mean()))
    assert outcome.quantities["loss 2"].value == pytest.approx(float(losses[10:19].mean()))
    plain = token_groups(groups=2, labels=1).measure(Point(problem))
    assert plain.quantities == outcome.quantities
    with pytest.raises(InputError, match="array 0 of a batch does not hold one label"):
        token_groups(labels=0).measure(Point(problem))
    few = gt.Problem(model, cross_entropy, [(x[:10], y[:10] + 1)])
    outcome = token_groups().measure(Point(few))
    assert outcome.quantities.keys() == {"loss 1", "gradient 1", "curvature 1"} and "1 groups" in outcome.status


def test_batches_without_labels_say_so():
    problem = gt.Problem(nn.Linear(4, 3).double(), lambda m, b: m(b).square().sum(1), [torch.ones(3, 4).double()])
    outcome = token_groups().measure(Point(problem))
    assert not outcome.quantities and "say by labels=" in outcome.status
    assert token_groups(groups=3).measure(Point(classification())).status == "ok"
