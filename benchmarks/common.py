"""What the benchmarks share: trained models, their data as peers want it, peak memory, provenance."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

import geomtraj as gt
from geomtraj import tasks
from geomtraj.training import train

MODELS = {
    "mlp-9k": ("digits-mlp", {"width": 64}, 200),
    "mlp-85k": ("digits-mlp", {"width": 256}, 200),
    "mlp-1.1M": ("digits-mlp", {"width": 1000}, 200),
    "cnn-10k": ("digits-cnn", {"width": 16, "eval_examples": 64}, 200),
    "cnn-93k": ("digits-cnn", {"width": 64, "eval_examples": 64}, 200),
    "cnn-1.1M": ("digits-cnn", {"width": 240, "eval_examples": 64}, 100),
    "gpt-14k": ("pydoc-lm", {"layers": 1, "width": 24, "context": 32, "eval_sequences": 32}, 200),
    "gpt-117k": ("pydoc-lm", {"layers": 2, "width": 64, "context": 32, "eval_sequences": 32}, 200),
    "gpt-1.2M": ("pydoc-lm", {"layers": 6, "width": 128, "heads": 4, "context": 32, "eval_sequences": 32}, 100),
}
"""Name -> task, its options, and steps of training with Adam."""


@dataclass
class Trained:
    """A trained model as a problem, and as peers want it: a model of logits (N, C) and batches of labels (N,)."""

    name: str
    problem: gt.Problem
    model: nn.Module
    data: list[tuple[Tensor, Tensor]]

    @property
    def tokens(self) -> bool:
        """Whether an example has a label at each position."""
        return MODELS[self.name][0] == "pydoc-lm"


class Flattened(nn.Module):
    """Logits and labels of every token as one batch, which peers with a mean loss want."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B T, V)."""
        return self.model(x).flatten(0, -2)


def trained(name: str) -> Trained:
    """The model `name` after its training, in evaluation mode."""
    task_name, options, steps = MODELS[name]
    task = tasks.make(task_name, **options)
    with tempfile.TemporaryDirectory() as folder:
        trajectory = train(task, "adam", 3e-3, steps, path=Path(folder) / "run", progress=False)
        model = task.model(0)
        trajectory.load_into(model, steps)
    problem = task.problem(model)
    flat = Flattened(model.eval()) if task_name == "pydoc-lm" else model.eval()
    return Trained(name, problem, flat, [(x, y.flatten()) for x, y in problem.batches])


class PeakMemory:
    """Largest growth of this process's resident memory inside the block, in MiB, sampled every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._start = self.peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.mib = (self.peak - self._start) / 2**20


def provenance(command: str, **peers: str) -> dict:
    """Command, versions and machine, for the head of a result."""
    device = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "geomtraj": gt.__version__, "python": platform.python_version()}
    return {"command": command, "versions": versions | peers, "machine": device}
