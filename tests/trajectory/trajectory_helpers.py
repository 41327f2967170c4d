"""A small model with everything that makes restoring hard, and a plain training loop."""

import torch
from torch import nn


class Odd(nn.Module):
    """Tied, frozen and normalised: embedding tied to the head, a frozen scale, batch statistics as buffers."""

    def __init__(self, width=8):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.7), requires_grad=False)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, tokens):
        self.calls += 1
        return self.head(torch.tanh(self.middle(self.norm(self.embedding(tokens)))) * self.scale)


def odd(seed=0, width=8):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Odd(width)


def data(step):
    rng = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, 11, (16,), generator=rng), torch.randint(0, 11, (16,), generator=rng)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgdm": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "lbfgs": lambda p: torch.optim.LBFGS([q for q in p if q.requires_grad], lr=0.1, max_iter=3),
}


def train(model, optimizer, start, stop, recorder=None):
    for step in range(start, stop):
        inputs, targets = data(step)

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure)
        if recorder is not None:
            recorder.log(loss=loss.detach())


def everything(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def assert_equal_models(a, b):
    a, b = everything(a), everything(b)
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
