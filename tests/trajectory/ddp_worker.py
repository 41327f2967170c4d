"""One process of several that train one model: `python ddp_worker.py RANK FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import geomtraj as gt

RUNS = (("once", 6, False), ("twice", 3, False), ("twice", 6, True), ("twice", 7, False))
"""Folder, steps, and whether to go on."""


def train(rank, folder, steps, resume):
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    try:
        with gt.Recorder(folder, model, optimizer, gt.every(2), resume=resume) as rec:
            begun = rec.step
            for step in range(begun, steps):
                torch.manual_seed(1000 * step + rank)
                model(torch.randn(4, 3)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                rec.log(loss=1.0)
            said = f"{begun} {rec.step}"
    except gt.GeomtrajError as error:
        said = f"{type(error).__name__}: {error}"
    return said, [p.detach().clone() for p in model.parameters()]


def main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = [train(rank, folder / name, steps, resume) for name, steps, resume in RUNS]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
