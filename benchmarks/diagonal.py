"""The Hessian diagonal by geomtraj and by its peers, in one process: time, memory, and error against exact entries.

    python benchmarks/diagonal.py --out benchmarks/results/diagonal-cpu.json

Models are the built-in tasks after a short training with Adam, at three sizes each. The error of a method on a weight
matrix is ||estimate - exact|| / ||exact|| over exact entries: all of them where P is small, else a random sample of the
rows' entries by one-hot products. "Time at equal error" scales each method's measured (time, error) pairs on a log-log
line. Ratios below 1 are in geomtraj's favour.
"""

from __future__ import annotations

import json
import platform
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import curvlinops
import numpy as np
import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import geomtraj as gt
from geomtraj import tasks
from geomtraj.diagonal import entries
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
TARGET_ERRORS = (0.3, 0.1)


@dataclass
class Case:
    """One trained model with everything that the methods need, and exact entries to compare with."""

    name: str
    problem: gt.Problem
    flat: nn.Module
    data: list[tuple[Tensor, Tensor]]
    exact: dict[str, tuple[Tensor, Tensor]]  # block -> positions in the flat vector, exact entries there


class Flattened(nn.Module):
    """Logits and labels of every token as one batch, which peers with a mean loss want."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B T, V)."""
        return self.model(x).flatten(0, -2)


def prepare(name: str, reference: int) -> Case:
    """The trained model `name`, with up to `reference` exact entries of each weight matrix."""
    task_name, options, steps = MODELS[name]
    task = tasks.make(task_name, **options)
    with tempfile.TemporaryDirectory() as folder:
        trajectory = train(task, "adam", 3e-3, steps, path=Path(folder) / "run", progress=False)
        model = task.model(0)
        trajectory.load_into(model, steps)
    problem = task.problem(model)
    hessian = gt.Hessian(problem)
    rng = torch.Generator().manual_seed(0)
    exact = {}
    for block, slot in problem.layout.items():
        if len(slot.shape) < 2:
            continue
        chosen = torch.randperm(slot.size, generator=rng)[:reference].sort().values + slot.slice.start
        exact[block] = (chosen, entries(hessian, chosen))
    tokens = task_name == "pydoc-lm"
    flat = Flattened(model.eval()) if tokens else model.eval()
    data = [(x, y.flatten()) for x, y in problem.batches]
    return Case(name, problem, flat, data, exact)


def curvlinops_hessian(case: Case) -> curvlinops.HessianLinearOperator:
    """The peer's operator on the same model, loss and data."""
    return curvlinops.HessianLinearOperator(
        case.flat,
        nn.CrossEntropyLoss(),
        list(case.flat.parameters()),
        case.data,
        check_deterministic=False,
        num_data=sum(len(y) for _, y in case.data),
        batch_size_fn=lambda x: x.numel() if case.name.startswith("gpt") else len(x),
    )


def peer(estimator: Callable[..., Tensor]) -> Callable[[Case, int], Tensor]:
    """One of curvlinops' estimators as a method."""

    def run(case: Case, samples: int) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return estimator(curvlinops_hessian(case), samples).detach()

    return run


def backpack_diagonal(case: Case, samples: int) -> Tensor:
    """BackPACK's DiagHessian, exact, on the feed-forward models written as nn.Sequential."""
    import backpack

    twin = backpack.extend(_sequential(case.problem.model))
    criterion = backpack.extend(nn.CrossEntropyLoss(reduction="sum"))
    total = torch.zeros(case.problem.size)
    for x, y in case.data:
        with backpack.backpack(backpack.extensions.DiagHessian()):
            criterion(twin(x), y).backward()
        total += torch.cat([p.diag_h.flatten() for p in twin.parameters()])
        twin.zero_grad()
    return total / case.problem.total_weight


def _sequential(model: nn.Module) -> nn.Sequential:
    layers: list[nn.Module] = []
    if hasattr(model, "hidden"):
        layers.append(nn.Flatten())
        for linear in model.hidden:
            layers += [linear, nn.ReLU()]
    else:
        layers += [model.conv1, nn.ReLU(), model.conv2, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    layers.append(model.head)
    import copy

    return copy.deepcopy(nn.Sequential(*layers))


METHODS: dict[str, Callable[[Case, int], Tensor]] = {
    "geomtraj probing": lambda case, samples: gt.diagonal(case.problem, "probing", samples).values,
    "geomtraj xdiag": lambda case, samples: gt.diagonal(case.problem, "xdiag", samples).values,
    "curvlinops hutchinson": peer(curvlinops.hutchinson_diag),
    "curvlinops xdiag": peer(curvlinops.xdiag),
}
EXACT_METHODS: dict[str, Callable[[Case, int], Tensor]] = {
    "geomtraj exact": lambda case, samples: gt.diagonal(case.problem, "exact").values,
    "backpack DiagHessian": backpack_diagonal,
}


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


def measure_method(method: Callable[[Case, int], Tensor], case: Case, samples: int) -> dict:
    """Seconds, peak memory and relative error per weight matrix."""
    with PeakMemory() as memory:
        started = time.perf_counter()
        values = method(case, samples)
        seconds = time.perf_counter() - started
    errors = {}
    for block, (chosen, exact) in case.exact.items():
        errors[block] = float((values[chosen] - exact).norm() / exact.norm())
    return {"samples": samples, "seconds": seconds, "peak_mib": memory.mib, "errors": errors}


def time_at_error(rows: list[dict], block: str, target: float) -> float:
    """Seconds to reach a relative error on one weight matrix.

    Between two measured points by a log-log line; beyond them as a random error goes, time ~ error^(-2). The smallest
    measured time is never undercut, since part of it does not shrink with the number of samples.
    """
    points = sorted((max(r["errors"][block], 1e-9), r["seconds"]) for r in rows)
    error, seconds = np.log([p[0] for p in points]), np.log([p[1] for p in points])
    goal = np.log(target)
    if goal < error[0]:
        found = seconds[0] - 2 * (goal - error[0])
    elif goal > error[-1]:
        found = seconds[-1] - 2 * (goal - error[-1])
    else:
        found = np.interp(goal, error, seconds)
    return float(np.exp(max(found, seconds.min())))


def ratios(found: dict[str, list[dict]], blocks: list[str]) -> dict:
    """Time of probing over the best peer's at equal error: per weight matrix, and their geometric mean."""
    summary = {}
    for target in TARGET_ERRORS:
        each = {}
        for block in blocks:
            ours = time_at_error(found["geomtraj probing"], block, target)
            theirs = [
                time_at_error(rows, block, target) for name, rows in found.items() if not name.startswith("geomtraj")
            ]
            each[block] = ours / min(theirs)
        summary[str(target)] = {
            "per block": each,
            "geometric mean": float(np.exp(np.mean(np.log(list(each.values()))))),
            "worst": max(each.values()),
        }
    return summary


@click.command()
@click.option("--models", default=",".join(MODELS), help="Names of models, with commas.")
@click.option("--samples", default="8,32,128", help="Samples of the randomised methods, with commas.")
@click.option("--reference", default=200, help="Exact entries per weight matrix to compare with.")
@click.option("--exact-up-to", default=20_000, help="Largest P for which geomtraj's exact diagonal is timed.")
@click.option("--threads", default=2)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(models: str, samples: str, reference: int, exact_up_to: int, threads: int, out: Path) -> None:
    """Run the benchmark and write its numbers as JSON."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore")
    content: dict = {
        "command": f"python benchmarks/diagonal.py --models {models} --samples {samples} --reference {reference} "
        f"--exact-up-to {exact_up_to} --threads {threads} --out {out}",
        "versions": {"torch": torch.__version__, "geomtraj": gt.__version__, "python": platform.python_version()},
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, {threads} threads",
        "models": {},
    }
    for name in models.split(","):
        case = prepare(name, reference)
        found: dict[str, list[dict]] = {method: [] for method in METHODS}
        for method in METHODS.values():  # warm-up
            method(case, 4)
        for count in map(int, samples.split(",")):
            for method, run in METHODS.items():
                found[method].append(measure_method(run, case, count))
                row = found[method][-1]
                worst = max(row["errors"].values())
                click.echo(f"{name:10} {method:24} S={count:<4} {row['seconds']:8.2f} s  worst error {worst:.3f}")
        for method, run in EXACT_METHODS.items():
            possible = not name.startswith("gpt") if method.startswith("backpack") else case.problem.size <= exact_up_to
            if possible:
                run(case, 0)
                found[method] = [measure_method(run, case, 0)]
                worst = max(found[method][0]["errors"].values())
                click.echo(
                    f"{name:10} {method:24}        {found[method][0]['seconds']:8.2f} s  worst error {worst:.1e}"
                )
        summary = ratios(found, list(case.exact))
        for target, s in summary.items():
            mean, worst = s["geometric mean"], s["worst"]
            click.echo(f"{name:10} time of probing / best peer at error {target}: mean {mean:.3f}, worst {worst:.3f}")
        content["models"][name] = {"parameters": case.problem.size, "methods": found, "ratios": summary}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
