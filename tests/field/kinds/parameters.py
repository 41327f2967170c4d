"""Parameters of every shape, number and name."""

import torch
from field.entry import Situation, entries
from torch import nn


def data(n=3, d=2):
    torch.manual_seed(1)
    return [torch.randn(n, d).double(), torch.randn(1, d).double()]


class Scaled(nn.Module):
    def __init__(self, **more):
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.layer = nn.Linear(2, 2)
        for name, value in more.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x):
        return (self.scale * self.layer(x)).tanh()


def square(model, batch):
    return model(batch).square().sum(1)


def zero_dimensional():
    return Situation(Scaled().double(), square, data())


def only_zero_dimensional():
    class Temperature(nn.Module):
        def __init__(self):
            super().__init__()
            self.log = nn.Parameter(torch.tensor(0.4))

        def forward(self, x):
            return x * self.log.exp()

    return Situation(Temperature().double(), square, data())


def empty():
    return Situation(Scaled(extra=torch.empty(0)).double(), square, data())


def empty_with_axes():
    return Situation(Scaled(extra=torch.empty(3, 0, 2)).double(), square, data())


def layer_without_inputs():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.none, self.layer = nn.Linear(0, 2), nn.Linear(2, 2)

        def forward(self, x):
            return (self.layer(x) + self.none(x[:, :0])).tanh()

    return Situation(Wide().double(), square, data())


def nothing_but_empty():
    model = nn.Module()
    model.w = nn.Parameter(torch.empty(0).double())
    return Situation(model, lambda m, b: b.sum(1) + m.w.sum(), data())


def unreached():
    return Situation(Scaled(spare=torch.ones(2, 2)).double(), square, data())


def names_with_signs():
    model = nn.ModuleDict()
    torch.manual_seed(0)
    for name in ("conv[0]", "conv0", "a*", "ab", "block/up", "why?", "[!x]", "é ü", "0"):
        model[name] = nn.Linear(2, 2)

    def loss(model, batch):
        for layer in model.values():
            batch = layer(batch).tanh()
        return batch.square().sum(1)

    return Situation(model.double(), loss, data())


def three_thousand():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.parts = nn.ParameterList([nn.Parameter(torch.randn(1)) for _ in range(3000)])

        def forward(self, x):
            return x * torch.cat(list(self.parts)).sin().sum()

    return Situation(Many().double(), square, data())


def frozen_in_part():
    model = Scaled().double()
    model.layer.bias.requires_grad_(False)
    return Situation(model, square, data())


def not_contiguous():
    torch.manual_seed(0)
    model = nn.Linear(2, 3).double()
    model.weight = nn.Parameter(torch.randn(2, 3).double().T)
    return Situation(model, lambda m, b: m(b).tanh().square().sum(1), data())


def sparse_gradient():
    torch.manual_seed(0)
    tokens = torch.tensor([[0, 1], [1, 2]])
    return Situation(nn.Embedding(4, 2, sparse=True).double(), lambda m, b: m(b).pow(4).sum((1, 2)), [tokens])


def padding_row():
    torch.manual_seed(0)
    tokens = torch.tensor([[0, 1], [1, 2]])
    model = nn.Embedding(4, 2, padding_idx=0).double()
    return Situation(model, lambda m, b: m(b).sum(1).sin().square().sum(1), [tokens], still=slice(0, 2))


def complex_numbers():
    model = nn.Linear(2, 2).double()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex128))
    return Situation(model, lambda m, b: (m(b) * m.phase).abs().square().sum(1), data())


def held_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = self.second = nn.Linear(2, 2)

        def forward(self, x):
            return self.second(self.first(x).tanh())

    return Situation(Twice().double(), square, data())


ENTRIES = entries(
    [
        zero_dimensional,
        only_zero_dimensional,
        empty,
        empty_with_axes,
        layer_without_inputs,
        (nothing_but_empty, "hold no entries at all"),
        unreached,
        names_with_signs,
        three_thousand,
        frozen_in_part,
        not_contiguous,
        sparse_gradient,
        padding_row,
        (complex_numbers, "'phase' is torch.complex128"),
        held_twice,
    ]
)
