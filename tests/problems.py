"""Problems that reach every kind of use of a parameter, for what looks into the model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from models import CASES, cross_entropy, split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import geomtraj as gt


def classification(model: nn.Module, *shape: int, classes: int = 3, sizes: tuple[int, ...] = (3, 2)) -> gt.Problem:
    x = torch.randn(sum(sizes), *shape).double()
    y = torch.randint(0, classes, (sum(sizes),))
    return gt.Problem(model.double(), cross_entropy, split(list(sizes), x, y))


def from_cases(name: str) -> Callable[[], gt.Problem]:
    return lambda: CASES[name]().problem


def tanh_mlp() -> gt.Problem:
    return classification(nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 3)), 3)


def relu_mlp() -> gt.Problem:
    return classification(nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 3)), 3)


def grouped_cnn() -> gt.Problem:
    """Groups, stride, dilation, 'same' padding, circular padding, batch norm in evaluation mode."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 4, 2, dilation=2, padding="same", groups=4),
        nn.Conv2d(4, 2, (1, 3), padding=(0, 1), padding_mode="circular", bias=False), nn.Softplus(),
        nn.Flatten(), nn.Linear(18, 3),
    )  # fmt: skip
    model(torch.randn(8, 2, 5, 6))
    return classification(model, 2, 5, 6)


def conv1d_and_transposed() -> gt.Problem:
    model = nn.Sequential(
        nn.Conv1d(2, 3, 3), nn.GroupNorm(1, 3), nn.Tanh(), nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, groups=1),
        nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(28, 3),
    )  # fmt: skip
    return classification(model, 2, 6)


def conv3d_and_transposed2d() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv3d(1, 2, 2)
            self.wide = nn.ConvTranspose2d(2, 2, 2, stride=2, output_padding=1, groups=2, dilation=2)
            self.head = nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.deep(x))
            return self.head(torch.tanh(self.wide(x[..., 0])).flatten(1))

    return classification(Net(), 1, 3, 3, 2)


def shared_module() -> gt.Problem:
    """One layer and one norm, both called three times, the later calls on outputs of the earlier ones."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = torch.tanh(self.norm(self.layer(x)))
            return self.head(x)

    return classification(Net(), 4)


def shared_relu() -> gt.Problem:
    """One layer called twice in a piecewise linear network: its output bends by the parameter that is used twice."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(torch.relu(self.layer(x))))

    return classification(Net(), 4)


def functional_transformer() -> gt.Problem:
    """Bare parameters, transposed weights, positions as a (1, T, D) table, gains written out, left products."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 4))
            self.position = nn.Parameter(torch.randn(1, 5, 4))
            self.gain = nn.Parameter(0.1 * torch.randn(4))
            self.scale = nn.Parameter(1 + 0.1 * torch.randn(4, 1))
            self.mix = nn.Parameter(torch.randn(5, 5))
            self.weight = nn.Parameter(torch.randn(4, 7))
            self.bias = nn.Parameter(torch.randn(7))
            self.token = nn.Parameter(torch.randn(1, 1, 4))

        def forward(self, tokens: Tensor) -> Tensor:
            x = F.embedding(tokens, self.table, padding_idx=2) * 2.0 + self.position
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * (1.0 + self.gain)
            x = x + self.mix @ torch.tanh(x)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            h = torch.tanh(torch.addmm(self.bias, x.reshape(-1, 4), self.weight)).view(len(x), 6, 7)
            h = (h @ self.weight.T).transpose(1, 2)
            return (h * self.scale).sum(2) @ self.table.t()

    return classification_of_tokens(Net())


def classification_of_tokens(model: nn.Module, sizes: tuple[int, ...] = (3, 2)) -> gt.Problem:
    tokens, y = torch.randint(0, 6, (sum(sizes), 5)), torch.randint(0, 6, (sum(sizes),))
    return gt.Problem(model.double(), cross_entropy, split(list(sizes), tokens, y))


def encoder_layer() -> gt.Problem:
    """Packed projections; the batch is the second axis inside."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=False)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.transpose(0, 1)).mean(0))

    return classification(Net(), 3, 4)


def cross_attention() -> gt.Problem:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.packed = nn.MultiheadAttention(4, 2, batch_first=True, add_bias_kv=True)
            self.apart = nn.MultiheadAttention(4, 1, batch_first=True, kdim=3, vdim=2)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            query, memory = x[:, :2], torch.tanh(x)
            y = self.packed(query, memory, memory)[0]
            return self.head(self.apart(y, x[..., :3], x[..., 2:])[0].sum(1))

    return classification(Net(), 3, 4)


class HFConv1D(nn.Module):
    """As in GPT-2: weight (in, out), examples and positions in one axis."""

    def __init__(self, out: int, size: int):
        super().__init__()
        self.out = out
        self.weight, self.bias = nn.Parameter(torch.randn(size, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.out)


def flattened_positions() -> gt.Problem:
    model = nn.Sequential(HFConv1D(5, 3), nn.Tanh(), nn.RMSNorm(5), HFConv1D(2, 5), nn.Flatten(), nn.Linear(8, 3))
    return classification(model, 4, 3)


def strange_uses() -> gt.Problem:
    """Parameters that no rule covers: functions of a parameter, an outer product, a custom autograd function."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return 2 * x * w

        @staticmethod
        def backward(ctx, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return 2 * g * w, (2 * g * x).sum(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_scale = nn.Parameter(torch.randn(3))
            self.left, self.right = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2, 3))
            self.hidden = nn.Parameter(torch.randn(3))
            self.prelu = nn.PReLU()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.linear(x * self.log_scale.exp(), self.left @ self.right)
            return self.layer(self.prelu(Double.apply(torch.tanh(x), self.hidden)))

    return classification(Net(), 3)


def weighted_dicts() -> gt.Problem:
    """Losses (B, T) in dicts, weights of any size, one example without weight, a parameter that nothing uses."""
    model = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.LayerNorm(6), nn.Linear(6, 2)).double()
    model.register_parameter("spare", nn.Parameter(torch.ones(2).double()))
    x, y, w = torch.randn(6, 4, 2).double(), torch.randn(6, 4, 2).double(), torch.rand(6, 4).double()
    w[1] = 0
    batches = [{"x": a, "y": b, "w": c} for a, b, c in split([4, 1, 1], x, y, w)]
    return gt.Problem(model, lambda m, b: ((m(b["x"]) - b["y"]).square().sum(2), b["w"]), batches)


class Checkpointed(nn.Module):
    """A block that is computed once more in the backward pass, and one that torch compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh())
        self.outer = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        self.compiled = torch.compile(self.outer, backend="eager")
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.compiled(checkpoint(self.inner, x, use_reentrant=False)))


def checkpointed_and_compiled() -> gt.Problem:
    return classification(Checkpointed(), 3)


PROBLEMS: dict[str, Callable[[], gt.Problem]] = {
    **{name: from_cases(name) for name in CASES},
    **{f.__name__: f for f in (
        tanh_mlp, relu_mlp, grouped_cnn, conv1d_and_transposed, conv3d_and_transposed2d, shared_module, shared_relu,
        functional_transformer, encoder_layer, cross_attention, flattened_positions, strange_uses, weighted_dicts,
        checkpointed_and_compiled,
    )},
}  # fmt: skip


def build(name: str) -> tuple[gt.Problem, Tensor]:
    torch.manual_seed(5)
    problem = PROBLEMS[name]()
    return problem, gt.Hessian(problem).dense().diagonal()
