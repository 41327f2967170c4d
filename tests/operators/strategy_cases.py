"""Further small problems in float64, each with something that a strategy may stumble over, and dense matrices."""

from __future__ import annotations

import torch
from models import CASES, Case, TinyGPT, call, cross_entropy, split, token_losses
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import geomtraj as gt


class Norms(nn.Module):
    """LayerNorm and GELU, whose derivatives some transforms of torch get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.gelu(self.norm(self.first(x))))


def norms() -> Case:
    torch.manual_seed(5)
    model = Norms().double()
    x, y = torch.randn(7, 4, 3).double(), torch.randn(7, 4, 2).double()
    problem = gt.Problem(model, lambda m, b: (m(b[0]) - b[1]).square().sum(-1), split([4, 3], x, y))
    return Case(problem, lambda p: (call(model, p, x) - y).square().sum(-1).mean())


class Checkpointed(nn.Module):
    """A block that is computed once more in the backward pass."""

    def __init__(self, on: bool = True):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.head = nn.Linear(4, 3)
        self.on = on

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.inner, x, use_reentrant=False) if self.on else self.inner(x))


def checkpointed() -> Case:
    torch.manual_seed(6)
    model, plain = Checkpointed().double(), Checkpointed(on=False).double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    problem = gt.Problem(model, cross_entropy, split([4, 2], x, y))
    return Case(problem, lambda p: F.cross_entropy(call(plain, p, x), y))


def compiled_block() -> Case:
    """A compiled model, and inside it a block that was compiled by itself."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    wrapped = torch.compile(nn.Sequential(torch.compile(model, backend="eager")), backend="eager")
    x, y = torch.randn(5, 3).double(), torch.randint(0, 2, (5,))
    problem = gt.Problem(wrapped, cross_entropy, split([3, 2], x, y))
    names = dict(zip(problem.layout, dict(plain.named_parameters()), strict=True))

    def reference(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(call(plain, {names[n]: value for n, value in p.items()}, x), y)

    return Case(problem, reference)


class Activations(nn.Module):
    """Entrywise functions with kernels of their own for the derivative, and a masked softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(7))

    def forward(self, x: Tensor) -> Tensor:
        functions = [F.relu, torch.sigmoid, F.elu, F.leaky_relu, F.softplus, F.hardtanh]
        for layer, function in zip(self.layers, functions, strict=False):
            x = x + function(layer(x))
        x = x + torch.where(x > 0, 1.0, x.exp()) + torch.where(x > 1, x.square(), torch.zeros_like(x))
        scores = self.layers[6](x).masked_fill(torch.tensor([False, False, False, True]), float("-inf"))
        return torch.log_softmax(scores, -1)[:, :3] / (1 + x[:, :3].square())


def activations() -> Case:
    torch.manual_seed(8)
    model = Activations().double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    loss = lambda m, b: -m(b[0])[torch.arange(len(b[1])), b[1]]  # noqa: E731
    problem = gt.Problem(model, loss, split([4, 2], x, y))
    return Case(problem, lambda p: -call(model, p, x)[torch.arange(6), y].mean())


def silu() -> Case:
    """An activation without a forward derivative of its derivative."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 3)).double()
    x, y = torch.randn(6, 4).double(), torch.randint(0, 3, (6,))
    return Case(gt.Problem(model, cross_entropy, split([4, 2], x, y)), lambda p: F.cross_entropy(call(model, p, x), y))


def in_place() -> Case:
    """In-place operations that autograd accepts, on a whole tensor."""
    torch.manual_seed(12)
    model = nn.Sequential(nn.Linear(3, 4), nn.ELU(inplace=True), nn.Linear(4, 2), Shift()).double()
    x, y = torch.randn(5, 3).double(), torch.randint(0, 2, (5,))
    problem = gt.Problem(model, cross_entropy, split([3, 2], x, y))
    return Case(problem, lambda p: F.cross_entropy(call(model, p, x), y))


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        x *= 2
        return x.tanh_()


def written_into() -> Case:
    """Parts of a tensor written one after the other."""
    torch.manual_seed(9)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            hidden += 1
            hidden = torch.tanh(hidden)
            room = torch.zeros(len(x), 4, dtype=x.dtype)
            room[:, :2] = hidden[:, :2]
            room[:, 2:] += hidden[:, 2:].square()
            return self.last(room)

    model = Net().double()
    x, y = torch.randn(5, 3).double(), torch.randint(0, 2, (5,))
    problem = gt.Problem(model, cross_entropy, split([3, 2], x, y))
    return Case(problem, lambda p: F.cross_entropy(call(model, p, x), y))


def gpt_frozen() -> Case:
    """The tied embedding frozen, so that it enters as a constant twice."""
    torch.manual_seed(10)
    model = TinyGPT().double()
    model.embedding.weight.requires_grad_(False)
    tokens = torch.randint(0, 7, (5, 6))
    mask = torch.arange(5) < torch.tensor([5, 3, 4, 1, 2])[:, None]
    batches = [{"tokens": t, "mask": m} for t, m in split([3, 2], tokens, mask)]

    def reference(p: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(call(model, p, tokens[:, :-1])[mask], tokens[:, 1:][mask])

    return Case(gt.Problem(model, token_losses, batches), reference)


STRATEGY_CASES = CASES | {
    f.__name__: f for f in (norms, checkpointed, compiled_block, activations, silu, in_place, written_into, gpt_frozen)
}

# What a strategy says where it cannot do a case.
NO_FORWARD, WRITES = "without a forward derivative", "write into a shared tensor"
LACKING = {
    ("hessian", "silu", "forward-over-reverse"): NO_FORWARD,
    ("hessian", "silu", "linearized-forward-over-reverse"): NO_FORWARD,
    ("hessian", "written_into", "linearized-forward-over-reverse"): WRITES,
    ("hessian", "written_into", "linearized-double-backward"): WRITES,
    ("ggn", "written_into", "linearized-forward-over-reverse"): WRITES,
    ("ggn", "written_into", "linearized-double-backward"): WRITES,
}


def dense_gauss_newton(case: Case) -> Tensor:
    """J^T H_z J (P, P), with J row by row and H_z column by column."""
    problem, total = case.problem, 0.0
    parameters = {n: t.clone().requires_grad_() for n, t in problem.layout.unflatten(problem.theta()).items()}
    leaves, options = list(parameters.values()), {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    with problem.session(), problem.holding(parameters):
        for batch in problem.batches:
            pairs = []

            def cut(_module, _inputs, output, pairs=pairs):
                pairs.append((output, output.detach().requires_grad_()))
                return pairs[-1][1]

            handle = problem.model.register_forward_hook(cut)
            value = problem.batch_sum(parameters, batch)
            handle.remove()
            ((z, leaf),) = pairs
            rows = [torch.autograd.grad(entry, leaves, **options) for entry in z.flatten()]
            jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
            (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
            if not slope.requires_grad:  # a loss that is linear in what the model returns
                total = total + jacobian.T @ torch.zeros(len(jacobian), len(jacobian)).double() @ jacobian
                continue
            bend = torch.stack([torch.autograd.grad(e, leaf, **options)[0].flatten() for e in slope.flatten()])
            total = total + jacobian.T @ bend @ jacobian
    return total / problem.total_weight
