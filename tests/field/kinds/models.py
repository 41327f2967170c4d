"""Models that write into their weights and buffers, keep a state, or return whatever they like."""

import collections
from dataclasses import dataclass
from typing import Any

import torch
from field.entry import Situation, entries
from torch import nn
from torch.utils.checkpoint import checkpoint


def data(n=4, d=3):
    torch.manual_seed(1)
    return [torch.randn(n, d).double(), torch.randn(2, d).double()]


def square(model, batch):
    return model(batch).square().sum(1)


class Written(nn.Module):
    """A layer whose forward pass does something to it first."""

    def __init__(self, write, **buffers):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.write = write
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        extra = self.write(self, x)
        return self.last((self.first(x) + (0 if extra is None else extra)).tanh())


def counting_buffer():
    def write(model, x):
        model.calls += 1
        return model.calls

    return Situation(Written(write, calls=torch.zeros(())).double(), square, data())


def buffer_rewritten_in_place():
    def write(model, x):
        model.state.mul_(0.5).add_(x.mean().detach())
        return model.state * model.first.bias

    return Situation(Written(write, state=torch.ones(4)).double(), square, data(), apart=False)


def buffer_assigned_anew():
    def write(model, x):
        model.state = model.state * 0.9 + x.mean().detach()
        return model.state

    return Situation(Written(write, state=torch.ones(4)).double(), square, data(), apart=False)


def buffer_that_holds_the_input():
    def write(model, x):
        model.state.copy_(x[0].detach())
        return model.state[0] * model.first.bias

    return Situation(Written(write, state=torch.ones(3)).double(), square, data(), apart=False)


def attribute_counter():
    def write(model, x):
        model.calls = getattr(model, "calls", 0) + 1

    return Situation(Written(write).double(), square, data())


def sparse_buffer():
    links = (torch.eye(4) + torch.eye(4).roll(1, 0)).double().to_sparse()
    return Situation(Written(lambda m, x: torch.sparse.mm(m.links, m.first.bias[:, None])[:, 0], links=links).double(),
                     square, data())  # fmt: skip


def weights_clamped_within():
    def write(model, x):
        with torch.no_grad():
            model.first.weight.clamp_(-5, 5)

    return Situation(Written(write).double(), square, data())


def weights_clamped_beyond():
    def write(model, x):
        with torch.no_grad():
            model.first.weight.clamp_(-0.05, 0.05)

    return Situation(Written(write).double(), square, data())


def embedding_within_max_norm():
    torch.manual_seed(0)
    model = nn.Embedding(4, 3, max_norm=50.0).double()
    return Situation(model, lambda m, b: m(b).sin().square().sum((1, 2)), [torch.tensor([[0, 1], [2, 3]])])


def embedding_beyond_max_norm():
    torch.manual_seed(0)
    model = nn.Embedding(4, 3, max_norm=0.1).double()
    return Situation(model, lambda m, b: m(b).sin().square().sum((1, 2)), [torch.tensor([[0, 1], [2, 3]])])


def moving_teacher():
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)

        def forward(self, x):
            with torch.no_grad():
                self.teacher.bias.add_(0.1)
            return self.net(x).tanh() - self.teacher(x)

    return Situation(Student().double(), square, data(), options={"params": "net.*"}, apart=False)


def adapter_that_is_merged_by_eval():
    class Merged(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.weight.requires_grad_(False)
            self.a, self.b = nn.Parameter(torch.randn(1, 3)), nn.Parameter(torch.randn(2, 1))
            self.merged = False

        def train(self, mode=True):
            super().train(mode)
            if mode == self.merged:
                self.weight.data += (-1 if mode else 1) * self.b.data @ self.a.data
                self.merged = not mode
            return self

    torch.manual_seed(0)
    return Situation(Merged().double(), square, data())


def cache_that_is_filled():
    def write(model, x):
        key = len(x)
        if key not in model.cache:
            model.cache[key] = torch.ones(4, dtype=x.dtype)
        return model.cache[key]

    model = Written(write)
    model.cache = {}
    return Situation(model.double(), square, data())


def batch_norm_in_evaluation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    model[1].running_mean += 0.3
    return Situation(model, square, data())


def batch_norm_in_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    return Situation(model, square, [torch.randn(6, 3).double()], options={"mode": "train"}, apart=False)


def recurrent():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.lstm = nn.LSTM(2, 2, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    torch.manual_seed(1)
    return Situation(Reader().double(), square, [torch.randn(3, 4, 2).double()])


def attention():
    class Looker(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.look = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.look(x, x, x)[0].flatten(1)

    torch.manual_seed(1)
    return Situation(Looker().double(), square, [torch.randn(3, 3, 4).double()])


def checkpointed():
    class Saver(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(checkpoint(self.inner, x, use_reentrant=False))

    return Situation(Saver().double(), square, data())


def checkpointed_reentrant():
    class Saver(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner, self.head = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(checkpoint(self.inner, x.requires_grad_(), use_reentrant=True))

    return Situation(Saver().double(), square, data())


def scripted():
    return Situation(torch.jit.script(nn.Linear(3, 2).double()), square, data())


def scripted_inside():
    model = nn.Sequential(nn.Linear(3, 3).double(), torch.jit.script(nn.Linear(3, 2).double()))
    return Situation(model, square, data())


def no_second_derivative(layer):
    def make():
        torch.manual_seed(0)
        return Situation(nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2)).double(), square, data())

    make.__name__ = type(layer).__name__.lower()
    return make


def bag_without_second_derivative():
    torch.manual_seed(0)
    model = nn.EmbeddingBag(4, 3, mode="mean").double()
    return Situation(model, lambda m, b: m(b).sin().sum(1), [torch.tensor([[0, 1], [2, 3]])])


def learnt_sparse_values():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.values, self.layer = nn.Parameter(torch.ones(3)), nn.Linear(3, 2)

        def forward(self, x):
            places = torch.tensor([[0, 1, 2], [1, 2, 0]])
            return torch.sparse.mm(torch.sparse_coo_tensor(places, self.values, (3, 3)), self.layer(x).tanh())

    return Situation(Graph().double(), square, [data(3)[0]], apart=False)


@dataclass
class Output:
    logits: Any
    extra: Any = None


Pair = collections.namedtuple("Pair", "logits hidden")


def returning(wrap, read):
    def make():
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.layer, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

            def forward(self, x):
                hidden = self.layer(x).tanh()
                return wrap(self.head(hidden), hidden)

        return Situation(Net().double(), lambda m, b: read(m(b)).square().sum(1), data())

    return make


def named(name, make):
    make.__name__ = name
    return make


ENTRIES = entries(
    [
        counting_buffer,
        buffer_rewritten_in_place,
        buffer_assigned_anew,
        buffer_that_holds_the_input,
        attribute_counter,
        sparse_buffer,
        weights_clamped_within,
        (weights_clamped_beyond, "the forward pass itself writes into 'first.weight'"),
        embedding_within_max_norm,
        (embedding_beyond_max_norm, "the forward pass itself writes into 'weight'"),
        moving_teacher,
        (adapter_that_is_merged_by_eval, r"train\(False\) writes into 'weight'"),
        cache_that_is_filled,
        batch_norm_in_evaluation,
        batch_norm_in_training,
        recurrent,
        attention,
        checkpointed,
        (checkpointed_reentrant, "use_reentrant"),
        (scripted, "the model is a ScriptModule"),
        (scripted_inside, "1 is a ScriptModule"),
        (no_second_derivative(nn.Hardsigmoid()), "without a second derivative"),
        (bag_without_second_derivative, "without a second derivative"),
        (learnt_sparse_values, "a sparse matrix whose values are learnt is likely to blame"),
        named("returning_integer_keys", returning(lambda z, h: {0: z, 1: h}, lambda out: out[0])),
        named("returning_tuple_keys", returning(lambda z, h: {("a", 1): z, None: h}, lambda out: out["a", 1])),
        named("returning_a_dataclass", returning(Output, lambda out: out.logits)),
        named("returning_a_namedtuple", returning(Pair, lambda out: out.logits)),
        named("returning_nested_lists", returning(lambda z, h: [[z, None], {"h": h}], lambda out: out[0][0])),
    ]
)
