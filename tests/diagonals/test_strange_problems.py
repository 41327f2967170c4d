"""Problems of kinds that people reported of other tools: the diagonal is that of the dense Hessian, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geomtraj as gt


def derivative_inside() -> gt.Problem:
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def residual(model: nn.Module, batch: Tensor) -> Tensor:
        t = batch.clone().requires_grad_()
        (du,) = torch.autograd.grad(model(t).sum(), t, create_graph=True)
        return (du - 1).square()[:, 0]

    return gt.Problem(model, residual, [torch.rand(5, 1).double()])


def scalar_parameter() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.layer = nn.Parameter(torch.tensor(1.3)), nn.Linear(2, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.layer(x).tanh()

    return gt.Problem(Net().double(), lambda m, x: m(x).square().sum(1), [torch.randn(6, 2).double()])


def no_entries() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing, self.layer = nn.Parameter(torch.empty(0)), nn.Linear(2, 40)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).tanh() + self.nothing.sum()

    return gt.Problem(Net().double(), lambda m, x: m(x).square().sum(1), [torch.randn(6, 2).double()])


def sparse_gradients() -> gt.Problem:
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Tanh(), nn.Linear(3, 40)).double()
    return gt.Problem(model, lambda m, b: m(b).pow(4).sum(1), [torch.tensor([0, 1, 3, 1])])


def empty_batch(first: bool = True) -> gt.Problem:
    model = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 40)).double()
    batches = [torch.randn(4, 2).double(), torch.randn(0, 2).double()]
    return gt.Problem(model, lambda m, x: m(x).square().sum(1), batches[::-1] if first else batches)


@dataclass
class Output:
    logits: Tensor
    name: str = "output"


def outputs(kind: str) -> Callable[[], gt.Problem]:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 40)

        def forward(self, x: Tensor) -> object:
            z = self.layer(x).tanh()
            return {0: z} if kind == "numbers" else Output(z)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        out = model(batch[0])
        return F.cross_entropy(out[0] if kind == "numbers" else out.logits, batch[1], reduction="none")

    def make() -> gt.Problem:
        return gt.Problem(Net().double(), loss, [(torch.randn(7, 3).double(), torch.randint(0, 40, (7,)))])

    return make


def written_batch() -> gt.Problem:
    model = nn.Linear(2, 40).double()

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        batch[1][batch[1] == 0] = -100
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none", ignore_index=-100)

    return gt.Problem(model, loss, [(torch.randn(6, 2).double(), torch.arange(6) % 3)], check=False)


KINDS: dict[str, Callable[[], gt.Problem]] = {
    "a derivative inside the loss": derivative_inside,
    "a scalar parameter": scalar_parameter,
    "a parameter without entries": no_entries,
    "sparse gradients": sparse_gradients,
    "an empty batch first": empty_batch,
    "an empty batch last": lambda: empty_batch(False),
    "outputs by number": outputs("numbers"),
    "outputs in a dataclass": outputs("dataclass"),
    "a loss that writes into its batch": written_batch,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_diagonals_are_those_of_the_dense_hessian(kind):
    torch.manual_seed(0)
    problem = KINDS[kind]()
    dense = gt.Hessian(problem).dense().diagonal()
    scale = dense.abs().max()
    assert (gt.diagonal(problem, "exact").values - dense).abs().max() <= 1e-10 * scale
    found = gt.diagonal(problem, "probing", samples=200)
    assert ((found.values - dense).abs() <= 6 * found.sem + 1e-9 * scale).all()
    ratios = gt.r_med(problem, "probing", samples=4, max_matvecs=400)
    exact = gt.r_med(problem, "exact")
    assert set(ratios) == {*problem.blocks, "all"}
    for label, r in ratios.items():
        if exact[label].value == exact[label].value:
            assert r.low <= exact[label].value * 1.05 and r.high >= exact[label].value * 0.95
        else:
            assert r.value != r.value


def coupled_only_in_second_derivatives(shift: int) -> gt.Problem:
    model = nn.Linear(3, 4).double()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        z = model(batch)
        q = z.roll(shift, 0)
        return z.sum(1) ** 2 + ((z - z.detach()) * (q - q.detach())).sum(1)

    return gt.Problem(model, loss, [torch.randn(8, 3).double()], check=False)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_coupling_that_only_the_second_derivative_shows_is_found(shift):
    torch.manual_seed(0)
    problem = coupled_only_in_second_derivatives(shift)
    dense = gt.Hessian(problem).dense().diagonal()
    torch.testing.assert_close(gt.diagonal(problem, "exact").values, dense)
    with pytest.raises(gt.errors.InputError, match="couples the examples"):
        gt.diagonal(problem, "probing")
    found = gt.diagonal(problem, "auto", samples=3)
    assert found.method == "xdiag" and "couples the examples" in found.status


@pytest.mark.filterwarnings("ignore")
def test_an_example_that_is_nan_alone_depends_on_the_others():
    torch.manual_seed(0)
    model = nn.Linear(3, 30)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        r = model(batch)[:, 0]
        return (r / r.std() - 1) ** 2

    problem = gt.Problem(model, loss, [torch.randn(20, 3)])
    found = gt.diagonal(problem, samples=8)
    assert found.method == "xdiag" and "depends on the other examples" in found.status and found.values.isfinite().all()
