"""A small recorded run and its problem, for tests of measuring."""

import math
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import geomtraj as gt
from geomtraj.statistics import Outcome, Quantity, Statistic
from geomtraj.trajectory import store

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


def alter(trajectory, step):
    """Records an iterate of the same run anew, with other parameters."""
    content = store.read_iterate(trajectory.path, step)
    next(iter(content["parameters"].values())).add_(0.01)
    store.write_iterate(trajectory.path, step, content)


def files(trajectory):
    return sorted((trajectory.path / "results").iterdir())


def numbers(results):
    return [(m.step, m.statistic, m.quantities) for m in results.measurements]


@dataclass(frozen=True)
class Troubled(Statistic):
    """Does something bad at the iterates of these steps of `record`; 1 elsewhere."""

    name = "troubled"
    title = "trouble"

    kind: str = "error"
    at: str = "2"
    folder: str = ""
    recorded: str = ""

    def measure(self, point):
        trajectory = gt.Trajectory(self.recorded)
        step = next(s for s in trajectory.steps if torch.equal(trajectory.at_step(s).theta, point.theta))
        if self.folder:
            with (Path(self.folder) / f"{step}").open("a") as file:
                file.write(f"{os.getpid()}\n")
        if str(step) in self.at.split():
            self._trouble(step)
        return Outcome({"number": Quantity.exact(1.0)})

    def _trouble(self, step):
        if self.kind == "error":
            raise RuntimeError("something\nwent wrong")
        if self.kind == "input":
            raise gt.InputError("this cannot be measured.")
        if self.kind == "memory":
            raise MemoryError("no memory")
        if self.kind == "interrupt":
            raise KeyboardInterrupt
        times = (Path(self.folder) / f"{step}").read_text().count("\n")
        if self.kind == "die" or (self.kind == "die once" and times == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "sleep":
            time.sleep(60)
