"""A Problem's fingerprint names the function: whatever changes it changes the name, and nothing else does."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt

RNG = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 6, generator=RNG), torch.randint(0, 4, (12,), generator=RNG)


def net(activation=nn.Tanh, *more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *more, activation(), nn.Linear(8, 4))


def plain(model, batch, smoothing=0.0, weight=None):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=smoothing, weight=weight)


def name_of(loss=plain, model=None, batches=None, **options):
    return gt.Problem(model or net(), loss, batches or [(X, Y)], **options).fingerprint()


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor


class Loss:
    def __init__(self, smoothing):
        self.smoothing = smoothing
        self.criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=smoothing)

    def __call__(self, model, batch):
        return plain(model, batch, self.smoothing)

    def method(self, model, batch):
        return self.criterion(model(batch[0]), batch[1])


def closure(smoothing):
    return lambda model, batch: plain(model, batch, smoothing)


def default(smoothing):
    def loss(model, batch, smoothing=smoothing):
        return plain(model, batch, smoothing)

    return loss


SMOOTHED = {
    "closure": closure,
    "default": default,
    "partial": lambda s: functools.partial(plain, smoothing=s),
    "attribute": Loss,
    "method": lambda s: Loss(s).method,
    "module": lambda s: Loss(s).method,
}


@pytest.mark.parametrize("kind", SMOOTHED)
def test_a_changed_loss_has_another_name_and_the_same_one_the_same(kind):
    make = SMOOTHED[kind]
    assert name_of(make(0.0)) == name_of(make(0.0)) == name_of() != name_of(make(1e-3)) != name_of(make(2e-3))


def test_how_the_same_data_are_cut_ordered_or_held_does_not_count():
    cut = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    single = [(X[i : i + 1], Y[i : i + 1]) for i in range(12)]
    turned = [(X.flip(0), Y.flip(0))]
    assert {name_of(batches=b) for b in (cut, single, turned)} == {name_of()}
    held = name_of(lambda m, b: plain(m, (b.x, b.y)), batches=[Batch(X, Y)])
    arrays = name_of(lambda m, b: plain(m, tuple(map(torch.from_numpy, b))), batches=[(X.numpy(), Y.numpy())])
    assert held == arrays == name_of()


def test_other_data_count_in_whatever_they_are_held():
    moved = X.clone()
    moved[3, 2] += 1e-3
    assert name_of(batches=[(moved, Y)]) != name_of()
    assert name_of(lambda m, b: plain(m, (b.x, b.y)), batches=[Batch(moved, Y)]) != name_of()
    assert (
        name_of(lambda m, b: plain(m, tuple(map(torch.from_numpy, b))), batches=[(moved.numpy(), Y.numpy())])
        != name_of()
    )
    relabelled = Y.clone()
    relabelled[0] = (Y[0] + 1) % 4
    assert name_of(batches=[(X, relabelled)]) != name_of()


def test_where_the_model_stands_does_not_count():
    model = net(nn.Tanh, nn.BatchNorm1d(8))
    before = name_of(model=model)
    for p in model.parameters():
        p.data.mul_(1.7)
    model.train()(X)
    assert name_of(model=model) == before


def test_activation_mode_dtype_weights_and_blocks_count():
    names = [
        name_of(),
        name_of(model=net(nn.ReLU)),
        name_of(model=net(nn.GELU)),
        name_of(mode="train"),
        name_of(model=net().double(), batches=[(X.double(), Y)]),
        name_of(lambda m, b: (plain(m, b), torch.arange(1.0, 13.0))),
        name_of(params="0.*"),
        name_of(blocks={"0.weight": gt.split(2)}),
        name_of(lambda m, b: plain(m, b) + m[0].weight.square().sum() * 1e-3),
    ]
    assert len(set(names)) == len(names)


def test_a_stop_gradient_counts_though_the_losses_are_the_same():
    def stopped(model, batch):
        z = model(batch[0])
        return F.cross_entropy(z, batch[1], reduction="none") + (z - z.detach()).sum(1)

    assert name_of(stopped) != name_of()


WEIGHT = torch.ones(4)


def test_changes_in_place_are_noticed_by_the_same_problem():
    loss = Loss(0.0)
    problem = gt.Problem(net(), loss, [(X, Y)])
    before = problem.fingerprint()
    loss.smoothing = 0.1
    assert problem.fingerprint() != before
    loss.smoothing = 0.0
    assert problem.fingerprint() == before
    weighted = gt.Problem(net(), lambda m, b: plain(m, b, weight=WEIGHT), [(X, Y)])
    before = weighted.fingerprint()
    WEIGHT[2] = 3.0
    try:
        assert weighted.fingerprint() != before
    finally:
        WEIGHT[2] = 1.0


def test_weights_that_have_changed_make_the_problem_unusable():
    scale = [1.0]
    problem = gt.Problem(net(), lambda m, b: (plain(m, b), torch.full((12,), scale[0])), [(X, Y)])
    scale[0] = 2.0
    with pytest.raises(gt.InputError, match=r"weights of the losses sum to 24, and to 12 .* make a new gt\.Problem"):
        problem.fingerprint()


def test_rounding_to_float32_inside_does_not_make_cuts_count():
    class Norm(nn.Module):
        def forward(self, x):
            y = x.float()
            return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    model = net(nn.Tanh, Norm())
    single = [(X[i : i + 1], Y[i : i + 1]) for i in range(12)]
    assert name_of(model=model) == name_of(model=model, batches=single)


def test_another_process_other_options_and_threads_give_the_same_name():
    code = "import test_fingerprint as t, torch; torch.set_num_threads(2); print(t.name_of())"
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-OO", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == name_of()


def test_a_loss_that_fails_at_the_fixed_values_has_a_name_all_the_same():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(6))

        def forward(self, x):
            if (self.w < 0.9).any():
                raise ValueError("the weights must be at least 0.9")
            return (x * self.w).sum(1)

    problem = gt.Problem(Root(), lambda m, b: m(b[0]).square(), [(X, Y)])
    other = gt.Problem(Root(), lambda m, b: m(b[0]).pow(4), [(X, Y)])
    assert problem.fingerprint() != other.fingerprint()
