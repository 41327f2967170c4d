"""Small runs to attack."""

import torch
from torch import nn

from geomtraj.trajectory import Recorder, every


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), 0.05)


def train(model, optimizer, start, stop, rec=None):
    for step in range(start, stop):
        loss = model(torch.full((2, 3), float(step % 5))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rec is not None:
            rec.log(loss=loss)


def record(path, steps=6, compress=False):
    model, optimizer = small()
    with Recorder(path, model, optimizer, every(2), {"lr": 0.05}, compress=compress) as rec:
        train(model, optimizer, 0, steps, rec)
    return model
