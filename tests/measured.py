"""A small recorded run and its problem, for tests of measuring."""

import math

import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


def losses(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2))


def problem(model=None):
    return gt.Problem(model or net(), losses, [(X[:8], Y[:8]), (X[8:], Y[8:])])


def record(path, steps=6, lr=0.1, poison=None, seed=0, every=2):
    model = net(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with gt.Recorder(path, model, optimizer, schedule=gt.every(every), meta={"seed": seed}):
        for step in range(steps):
            optimizer.zero_grad()
            losses(model, (X, Y)).mean().backward()
            optimizer.step()
            if poison == step + 1:
                with torch.no_grad():
                    model[0].weight.fill_(math.nan)
    return gt.Trajectory(path)


def files(trajectory):
    return sorted((trajectory.path / "results").iterdir())


def numbers(results):
    return [(m.step, m.statistic, m.quantities) for m in results.measurements]
