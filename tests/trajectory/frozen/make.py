"""Records the run that stands here in each format: python make.py FOLDER, with the geomtraj of that format."""

import platform
import sys

import torch
from torch import nn

import geomtraj as gt

platform.platform = lambda *a: "Linux"
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
model.register_buffer("short", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
model[0].bias.requires_grad_(False)
optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
with gt.Recorder(sys.argv[1], model, optimizer, gt.every(2), {"seed": 0}) as rec:
    for step in range(4):
        loss = model(torch.arange(8.0).reshape(4, 2) + step).square().mean()
        rec.log(loss=loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save({i.step: (i.theta, i.buffers, i.optimizer_state) for i in gt.Trajectory(sys.argv[1])}, sys.argv[1] + ".pt")
