"""The Hessian diagonal by geomtraj and by its peers, in one process: time, memory, and error against exact entries.

    python benchmarks/diagonal.py --out benchmarks/results/diagonal-cpu.json

Models are the built-in tasks after a short training with Adam, at three sizes each. The error of a method on a weight
matrix is ||estimate - exact|| / ||exact|| over exact entries: all of them where P is small, else a random sample of the
rows' entries by one-hot products. "Time at equal error" scales each method's measured (time, error) pairs on a log-log
line. Ratios below 1 are in geomtraj's favour. Models that the file holds already and that are not named stay.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import click
import curvlinops
import numpy as np
import torch
from common import MODELS, PeakMemory, provenance, trained
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import geomtraj as gt
from geomtraj.diagonals import entries

TARGET_ERRORS = (0.3, 0.1)


@dataclass
class Case:
    """One trained model with everything that the methods need, and exact entries to compare with."""

    name: str
    problem: gt.Problem
    flat: nn.Module
    data: list[tuple[Tensor, Tensor]]
    exact: dict[str, tuple[Tensor, Tensor]]  # block -> positions in the flat vector, exact entries there


def prepare(name: str, reference: int) -> Case:
    """The trained model `name`, with up to `reference` exact entries of each weight matrix."""
    case = trained(name)
    problem = case.problem
    hessian = gt.Hessian(problem)
    rng = torch.Generator().manual_seed(0)
    exact = {}
    for block, slot in problem.layout.items():
        if len(slot.shape) < 2:
            continue
        chosen = torch.randperm(slot.size, generator=rng)[:reference].sort().values + slot.slice.start
        exact[block] = (chosen, entries(hessian, chosen))
    return Case(name, problem, case.model, case.data, exact)


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


def draw(content: dict, path: Path) -> None:
    """Error against time: the geometric mean over weight matrices, a panel for each model."""
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter

    models = content["models"]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat[len(models) :]:
        ax.remove()
    colours = dict(zip([*METHODS, *EXACT_METHODS], plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    for ax, (name, found) in zip(axes.flat, models.items(), strict=False):
        for method, measured in found["methods"].items():
            errors = [np.exp(np.mean(np.log(np.maximum(list(r["errors"].values()), 1e-7)))) for r in measured]
            ax.loglog([r["seconds"] for r in measured], errors, "o-", ms=4, lw=1.2, color=colours[method])
        ax.set(title=f"{name}, P = {found['parameters']:,}", xlabel="seconds", ylabel="relative error")
        ax.xaxis.set_minor_formatter(NullFormatter())
        low, high = ax.get_xlim()
        ax.set_xlim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    handles = [Line2D([], [], marker="o", ms=4, lw=1.2, color=c, label=method) for method, c in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


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
    command = (
        f"python benchmarks/diagonal.py --models {models} --samples {samples} --reference {reference} "
        f"--exact-up-to {exact_up_to} --threads {threads} --out {out}"
    )
    content = provenance(command, **{p: version(p) for p in ("curvlinops-for-pytorch", "backpack-for-pytorch")})
    content["models"] = json.loads(out.read_text())["models"] if out.exists() else {}
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
        content["models"][name] = {
            "command": command,
            "parameters": case.problem.size,
            "methods": found,
            "ratios": summary,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1))
    draw(content, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
