"""Parameters that the loss also reaches past the model: lists, closures, loss objects, views made before."""

import torch
from field.entry import Situation, entries
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def data():
    return [torch.randn(4, 3).double(), torch.randn(2, 3).double()]


class Decay:
    """Weight decay over a list, held apart as by an EWC term."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def __call__(self, model, batch):
        return model(batch).square().sum(1) + 0.5 * sum(p.pow(4).sum() for p in self.parameters)


def list_of_parameters():
    model = net()
    return Situation(model, Decay(model.parameters()), data())


def anchored():
    model = net()

    class Anchor(Decay):
        def __call__(self, model, batch):
            pulled = sum((p - a).square().sum() for p, a in zip(self.parameters, self.anchors, strict=True))
            return model(batch).square().sum(1) + 3 * pulled

    loss = Anchor(model.parameters())
    loss.anchors = [p.detach() + 1 for p in loss.parameters]
    return Situation(model, loss, data())


def concatenated():
    model = net()

    class Norm(Decay):
        def __call__(self, model, batch):
            return model(batch).square().sum(1) * torch.cat([p.flatten() for p in self.parameters]).norm()

    return Situation(model, Norm([model[0].weight, model[2].weight]), data())


def head_tied_by_a_list():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = [self.embedding.weight]

        def forward(self, x):
            return self.embedding(x).tanh() @ self.head[0].T

    torch.manual_seed(0)
    y = torch.tensor([[0, 1], [2, 3], [4, 0]])
    loss = nn.CrossEntropyLoss(reduction="none")
    return Situation(Tied().double(), lambda m, b: loss(m(b).transpose(1, 2), b.roll(1, 1)), [y])


def views_made_before():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3).double())
            self.parts = list(self.w.chunk(2))

        def forward(self, x):
            return (x @ self.parts[0].T).tanh() * (x @ self.parts[1].T)

    torch.manual_seed(0)
    return Situation(Parts(), lambda m, b: m(b).square().sum(1), data())


def transposed_view_made_before():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(2, 3).double())
            self.wt = self.w.T

        def forward(self, x):
            return (x @ self.wt).tanh() @ self.w

    torch.manual_seed(0)
    return Situation(Head(), lambda m, b: m(b).square().sum(1), data())


def product_made_before():
    model = net()
    scaled = 2 * model[2].weight
    return Situation(model, lambda m, b: m(b).square().sum(1) + scaled.square().sum(), data())


def numpy_view():
    model = net()
    view = model[2].weight.detach().numpy()
    return Situation(model, lambda m, b: m(b).square().sum(1) * (1 + float((view**2).sum())), data())


def detached_view():
    model = net()
    view = model[2].weight.detach()
    return Situation(model, lambda m, b: m(b).square().sum(1) * (1 + view.square().sum()), data())


def same_module_in_the_closure():
    model = net()
    return Situation(model, lambda m, b: model(b).square().sum(1) + model[2].weight.pow(4).sum(), data())


def own_criterion_with_parameters():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_sigma = nn.Parameter(torch.tensor(0.3).double())

        def forward(self, model, batch):
            return model(batch).square().sum(1) / self.log_sigma.exp() + self.log_sigma

    return Situation(net(), Criterion(), data())


ENTRIES = entries(
    [
        list_of_parameters,
        anchored,
        concatenated,
        head_tied_by_a_list,
        views_made_before,
        transposed_view_made_before,
        (product_made_before, "reaches '2.weight' past the model"),
        (numpy_view, "holds '2.weight' or numbers made of it elsewhere"),
        (detached_view, "holds '2.weight' or numbers made of it elsewhere"),
        same_module_in_the_closure,
        own_criterion_with_parameters,
    ]
)
