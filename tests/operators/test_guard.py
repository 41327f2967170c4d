"""The check that all second derivatives stand behind: what it costs, when it is made, and that it sees small faults."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.operators.guard.check import _Check

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


def cross_entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def net(activation=nn.ReLU, depth=3):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(5, 5), activation())]
    return nn.Sequential(*layers, nn.Linear(5, 3))


class Bent(torch.autograd.Function):
    """x -> x + size x^2 / 2, with a second derivative that is silently zero."""

    @staticmethod
    def forward(ctx, x, size):
        ctx.slope = 1 + size * x
        return x + size * x * x / 2

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope, None


def bent(size):
    return lambda model, batch: F.cross_entropy(Bent.apply(model(batch[0]), size), batch[1], reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.LeakyReLU, nn.GELU])
def test_three_gradients_and_two_losses_once_for_a_problem(dtype, activation):
    problem = gt.Problem(
        net(activation).to(dtype), cross_entropy, [(X[:40].to(dtype), Y[:40]), (X[40:].to(dtype), Y[40:])]
    )
    assert problem.guard is None and gt.Hessian(problem).matvecs == 0
    hessian = gt.Hessian(problem)
    hessian @ problem.theta()
    found = problem.guard
    assert (found.status, found.gradients, found.losses, found.products) == ("ok", 3, 2, 2)
    assert hessian.matvecs == 1
    gt.Hessian(problem, problem.theta() + 1) @ problem.theta()
    gt.diagonal(problem, "probing", samples=2), gt.GGN(problem), gt.trace(problem, 2)
    assert problem.guard is found


@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 3e-2), (torch.float32, 1.0)])
def test_a_fault_in_a_small_part_of_the_curvature_is_seen(dtype, size):
    model = net(nn.Tanh).to(dtype)
    batches = [(X.to(dtype), Y)]
    with pytest.raises(gt.InputError, match=r"'Bent' is likely to blame.*strategy='finite-differences'.*check=False"):
        gt.diagonal(gt.Problem(model, bent(size), batches))
    gt.diagonal(gt.Problem(model, bent(0.0), batches))


def test_the_way_out_that_the_sentence_names_is_right():
    model = net(nn.Tanh).double()
    problem = gt.Problem(model, bent(1.0), [(X.double(), Y)])
    v = torch.randn(problem.size, generator=torch.Generator().manual_seed(1)).double()

    def plain(model, batch):
        z = model(batch[0])
        return F.cross_entropy(z + z * z / 2, batch[1], reduction="none")

    expected = gt.Hessian(gt.Problem(model, plain, [(X.double(), Y)])) @ v
    found = gt.Hessian(problem, strategy="finite-differences") @ v
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_without_the_check_every_status_says_so():
    problem = gt.Problem(net(nn.Tanh), bent(1.0), [(X, Y)], check=False)
    remark = r"second derivatives were not checked \(check=False\)"
    for found in (gt.diagonal(problem), gt.trace(problem, 2), gt.eigsh(problem, 1), gt.r_med(problem)["all"]):
        assert remark.replace("\\", "") in found.status


def test_a_refusal_is_the_same_each_time_and_takes_no_new_work():
    problem = gt.Problem(net(nn.Tanh), bent(1.0), [(X, Y)])
    sentences = set()
    for _ in range(2):
        with pytest.raises(gt.InputError) as caught:
            gt.r_med(problem)
        sentences.add(str(caught.value))
        gradients = problem.guard.gradients
    assert len(sentences) == 1 and problem.guard.gradients == gradients


def test_parameters_that_are_not_finite_leave_the_check_for_later():
    problem = gt.Problem(net(), cross_entropy, [(X, Y)])
    gt.Hessian(problem, torch.full_like(problem.theta(), torch.nan)) @ problem.theta()
    assert problem.guard is None
    gt.Hessian(problem) @ problem.theta()
    assert problem.guard.status == "ok"


def test_what_is_too_noisy_to_tell_is_measured_and_said():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.last(self.first(x).relu()).float()

    problem = gt.Problem(Half(), cross_entropy, [(X, Y)])
    assert "could not be told" in gt.trace(problem, 2).status


def test_the_model_is_left_bit_for_bit_and_graphs_of_the_caller_stay_valid():
    model = net(nn.Tanh)
    before = [p.detach().clone() for p in model.parameters()]
    pending = cross_entropy(model, (X, Y)).mean()  # a backward pass that the caller has still to make
    gt.r_med(gt.Problem(model, cross_entropy, [(X, Y)]))
    pending.backward()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_products_by_differences_stand_behind_the_check_of_the_gradient():
    model = net(nn.Tanh).double()
    view = model[0].weight.detach().numpy()
    held = gt.Problem(model, lambda m, b: cross_entropy(m, b) * (1 + float((view**2).sum())), [(X.double(), Y)])
    with pytest.raises(gt.InputError, match="'0.weight' or numbers made of it elsewhere"):
        gt.Hessian(held, strategy="finite-differences") @ held.theta()
    stopped = gt.Problem(model, lambda m, b: cross_entropy(m, b) * m(b[0]).detach().square().sum(1), [(X.double(), Y)])
    with pytest.raises(gt.InputError, match="is not the derivative of the loss"):
        gt.Hessian(stopped, strategy="finite-differences") @ stopped.theta()


def test_a_loss_that_is_not_finite_is_told_and_no_crash():
    problem = gt.Problem(net(nn.Tanh), lambda m, b: cross_entropy(m, b) * float("nan"), [(X, Y)])
    assert "non-finite" in gt.trace(problem, 2).status
    assert not gt.diagonal(problem, samples=2).values.isfinite().any()


def test_products_that_are_not_symmetric_are_refused():
    problem = gt.Problem(net(nn.Tanh).double(), cross_entropy, [(X.double(), Y)])
    check = _Check(problem, problem.theta())
    check.multiply()
    check.begin()
    assert check.products() == ("ok", "")
    check.hu = 1.5 * check.hu  # as from a backward pass that depends on what was computed before
    assert "not symmetric" in check.products()[1]
