"""Products and spectra by geomtraj and by its peers, in one process: time from a fresh operator, steady time, memory.

    python benchmarks/engine.py --threads 1 --out benchmarks/results/engine-cpu-1.json
    python benchmarks/engine.py --threads 2 --no-grow --out benchmarks/results/engine-cpu-2.json

For each model, first the seconds to 1, 10, 40 and 256 products with the Hessian and the Gauss-Newton matrix by an
operator made anew, and to a density of 40 steps: on the wall and of all threads of the process, in rounds of
alternating order. "geomtraj, new problem" has the check of derivatives in it. Then the steady state, in such rounds
too: the time of one product over the time of one gradient, for geomtraj, hessian-eigenthings, curvlinops and PyHessian,
each prepared as far as it can be (graphs that a library keeps are kept). Beside it the limit: matrix-product operations
of a product over those of a gradient, counted while both run. Then the same spectrum by all: a density of 64 steps and
4 probes, and the 10 largest eigenpairs to a residual of 1e-3; and the growth of geomtraj's product with examples,
parameters and vectors and of its density with steps. Two models of the size that people train take minutes and
gigabytes, so they have to be named, with fewer products before the timing:

    python benchmarks/engine.py --models resnet-11M --warm-up 8 --rounds 5 --fresh-rounds 0 --job-rounds 0 --no-grow
        --threads 1 --out benchmarks/results/engine-resnet-11M-cpu.json
    python benchmarks/engine.py --models gpt-124M --warm-up 2 --rounds 3 --fresh-rounds 0 --job-rounds 0 --no-grow
        --threads 1 --out benchmarks/results/engine-gpt-124M-cpu.json

On a GPU add `--device cuda`. Work is then waited for before each look at the clock, memory is what torch allocated, and
TF32 is off for all libraries.
"""

from __future__ import annotations

import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import curvlinops
import hessian_eigenthings
import numpy as np
import scipy.sparse.linalg
import torch
from common import MODELS, Trained, provenance
from devices import peak_memory, synchronise
from fresh import COUNTS, measure_density, measure_fresh
from large import LARGE
from libraries import (
    PEERS,
    device_of,
    eigenthings,
    factories,
    gradient_of,
    in_math,
    linops,
    merged,
    prepared,
    problem_of,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import geomtraj as gt
from geomtraj import tasks

STEPS, PROBES, PAIRS, RESIDUAL = 64, 4, 10, 1e-3


def counted(case: Trained, matrix: str) -> tuple[int, int]:
    """Matrix-product operations of a gradient, and of a product with all that does not depend on the vector kept."""
    gradient = gradient_of(case)
    with FlopCounterMode(display=False) as plain:
        gradient()
    if matrix == "ggn":
        ggn = gt.GGN(problem_of(case), strategy="double-backward")
        vector = torch.ones(case.problem.size, device=device_of(case))
        ggn @ vector
        with FlopCounterMode(display=False) as product:
            ggn @ vector
        return plain.get_total_flops(), product.get_total_flops()
    x, y = merged(case)
    parameters = list(case.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = nn.functional.cross_entropy(case.model(x), y)
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        with FlopCounterMode(display=False) as second:
            torch.autograd.grad(grads, parameters, [torch.ones_like(g) for g in grads])
    return plain.get_total_flops(), second.get_total_flops()


def in_rounds(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, every round in the reverse order of the one before."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for n in range(rounds):
        for name in list(functions)[:: -1 if n % 2 else 1]:
            synchronise()
            started = time.perf_counter()
            functions[name]()
            synchronise()
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_products(case: Trained, rounds: int, warm_up: int, matrix: str = "hessian") -> dict:
    """Seconds of a gradient and of products, their ratios, and memory, for one model."""
    device = device_of(case)
    products = {library: make() for library, make in factories(case, problem_of(case))[matrix].items()}
    vector = torch.randn(case.problem.size, generator=torch.Generator().manual_seed(0)).to(device)
    peak: dict[str, float] = {}
    difference: dict[str, float] = {}
    reference = None
    for name, product in products.items():
        with peak_memory(device) as memory:
            for _ in range(warm_up):
                result = product(vector)
        peak[name] = memory.mib
        flat = result if isinstance(result, Tensor) else torch.cat([part.reshape(-1) for part in result])
        reference = flat if reference is None else reference
        difference[name] = float((flat - reference).norm() / reference.norm())
    timed = in_rounds(
        {"gradient": gradient_of(case)} | {name: lambda f=f: f(vector) for name, f in products.items()}, rounds
    )
    gradient = timed.pop("gradient")
    ratios = {name: seconds / gradient for name, seconds in timed.items()}
    of_gradient, of_product = counted(case, matrix)
    rates = {"gradient": of_gradient / gradient / 1e12, "geomtraj": of_product / timed["geomtraj"] / 1e12}
    return {
        "parameters": case.problem.size,
        "gradient seconds": gradient,
        "gradients per product": ratios,
        "limit by counting matrix products": of_product / of_gradient,
        "matrix TFLOP/s": rates,
        "strategy": products["geomtraj"].__self__.strategy,
        "peak_mib": peak,
        "difference from geomtraj": difference,
        "over hessian-eigenthings": ratios["geomtraj"] / ratios["hessian-eigenthings"],
        "over the best peer": ratios["geomtraj"] / min(ratios[p] for p in PEERS if p in ratios),
    }


def spectrum_of(case: Trained) -> dict[str, Callable[[], object]]:
    """Library -> density and largest eigenpairs by it; PyHessian's density calls torch.eig, which is gone."""
    batch, problem = merged(case), problem_of(case)

    def ours() -> object:
        return gt.spectrum(gt.Hessian(problem), steps=STEPS, probes=PROBES, k=PAIRS, tol=RESIDUAL, which="LA")

    def theirs_eigenthings() -> object:
        operator = eigenthings(case, batch)
        hessian_eigenthings.spectral_density(operator, num_runs=PROBES, lanczos_steps=STEPS, seed=0)
        steps = 2 * PAIRS
        while True:  # it has no restarts: more steps until the residuals are small enough
            found = hessian_eigenthings.lanczos(operator, k=PAIRS, max_iter=steps, tol=RESIDUAL, which="LA", seed=0)
            if bool(torch.as_tensor(found.converged).all()):
                return found
            steps *= 2

    def theirs_curvlinops() -> object:
        operator = linops(case, batch)
        curvlinops.lanczos_approximate_spectrum(operator, STEPS, num_repeats=PROBES)
        return scipy.sparse.linalg.eigsh(operator.to_scipy(), k=PAIRS, which="LA", tol=RESIDUAL)

    return {
        "geomtraj": ours,
        "hessian-eigenthings": in_math(theirs_eigenthings),
        "curvlinops": in_math(theirs_curvlinops),
    }


def measure_spectrum(case: Trained, rounds: int) -> dict:
    """Seconds of the whole job by each library, and what Lanczos adds to its bare products."""
    timed = in_rounds(spectrum_of(case), rounds)
    hessian = gt.Hessian(problem_of(case))
    block = torch.randn(case.problem.size, PROBES, generator=torch.Generator().manual_seed(0)).to(hessian.device)

    def bare() -> None:
        for _ in range(STEPS):
            hessian @ block

    hessian @ block
    apart = in_rounds(
        {"products": bare, "density": lambda: gt.spectral_density(hessian, steps=STEPS, probes=PROBES)}, rounds
    )
    return {
        "seconds": timed,
        "over the best peer": timed["geomtraj"] / min(timed[p] for p in PEERS if p in timed),
        "overhead of Lanczos": apart["density"] / apart["products"] - 1,
    }


def growth(device: str) -> dict:
    """Seconds of a product, or of a density, as one size grows, and the slope of their logarithms."""

    def problem(**options: int) -> gt.Problem:
        small = {"context": 32, "width": 64, "layers": 2, "eval_sequences": 32}
        task = tasks.make("pydoc-lm", device=device, **small | options)
        return task.problem(task.model(0))

    def product(problem: gt.Problem, vectors: int = 1) -> float:
        hessian = gt.Hessian(problem)
        block = torch.randn(problem.size, vectors, generator=torch.Generator().manual_seed(0)).to(device)
        hessian @ block
        return in_rounds({"product": lambda: hessian @ block}, 5)["product"]

    def density(steps: int) -> float:
        hessian = gt.Hessian(problem())
        hessian @ torch.ones(hessian.shape[0], device=device)
        return in_rounds({"density": lambda: gt.spectral_density(hessian, steps=steps, probes=1)}, 3)["density"]

    sizes = {
        "examples": [16, 32, 64, 128, 256],
        "layers": [1, 2, 4, 8],
        "vectors": [1, 2, 4, 8, 16],
        "steps": [16, 32, 64, 128],
    }
    seconds = {
        "examples": [product(problem(eval_sequences=n)) for n in sizes["examples"]],
        "layers": [product(problem(layers=n)) for n in sizes["layers"]],
        "vectors": [product(problem(), n) for n in sizes["vectors"]],
        "steps": [density(n) for n in sizes["steps"]],
    }
    parameters = [problem(layers=n).size for n in sizes["layers"]]
    found = {
        key: {"n": sizes[key], "seconds": seconds[key], "exponent": slope(sizes[key], seconds[key])}
        for key in ("examples", "vectors", "steps")
    }
    return found | {
        "parameters": {"n": parameters, "seconds": seconds["layers"], "exponent": slope(parameters, seconds["layers"])}
    }


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Exponent of growth over the upper half of the sizes."""
    half = (len(sizes) - 1) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def draw(content: dict, path: Path) -> None:
    """Gradients per product with their limit, and growth."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    models = content["models"]
    names = ["geomtraj", *PEERS]
    for k, library in enumerate(names):
        values = [m["gradients per product"][library] for m in models.values()]
        axes[0].bar(np.arange(len(models)) + 0.2 * (k - 1.5), values, 0.18, label=library)
    limits = [m["limit by counting matrix products"] for m in models.values()]
    axes[0].hlines(limits, np.arange(len(models)) - 0.4, np.arange(len(models)) + 0.4, "k", lw=1, label="limit")
    axes[0].set(xticks=range(len(models)), xticklabels=list(models), ylabel="gradients per product")
    axes[0].legend(fontsize=8)
    for key, line in content.get("growth", {}).items():
        relative = np.array(line["seconds"]) / line["seconds"][0]
        axes[1].loglog(np.array(line["n"]) / line["n"][0], relative, "o-", label=f"{key}: n^{line['exponent']:.2f}")
    axes[1].set(xlabel="size over the smallest", ylabel="seconds over the smallest")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=120)


@click.command()
@click.option(
    "--models", default="mlp-1.1M,cnn-93k,gpt-117k,gpt-1.2M", help=f"With commas, of {', '.join([*MODELS, *LARGE])}."
)
@click.option("--rounds", default=9, help="Rounds of products in the steady state.")
@click.option(
    "--warm-up",
    default=120,
    help="Products before any is timed there, among them those that geomtraj tries strategies on.",
)
@click.option(
    "--fresh-rounds", default=3, help="Rounds of fresh operators and of densities from them; 0 leaves it out."
)
@click.option("--counts", default=",".join(map(str, COUNTS)), help="Products by fresh operators.")
@click.option("--job-rounds", default=3, help="Rounds of the whole spectrum; 0 leaves it out.")
@click.option("--grow/--no-grow", default=True)
@click.option("--threads", default=2)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(**options: Any) -> None:
    """Run the benchmark; write its numbers as JSON and a figure beside it."""
    device, out = options["device"], options["out"]
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("torch sees no CUDA GPU here: leave out --device cuda.")
    torch.set_num_threads(options["threads"])
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore")
    peers = ("hessian-eigenthings", "curvlinops-for-pytorch", "pyhessian")
    content = provenance(command_of(options), **{p: version(p) for p in peers})
    content["models"] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in options["models"].split(","):
        content["models"][name] = found = {}
        measure(name, prepared(name, torch.device(device)), options, found)
        out.write_text(json.dumps(content, indent=1))
    if options["grow"]:
        content["growth"] = growth(device)
    out.write_text(json.dumps(content, indent=1))
    draw(content, out.with_suffix(".png"))


def command_of(options: dict[str, Any]) -> str:
    """The command that gives the same again."""
    words = ["python benchmarks/engine.py"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        words.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {value}")
    return " ".join(words)


def measure(name: str, case: Trained, options: dict[str, Any], found: dict) -> None:
    """All of one model, into `found`."""
    rounds, counts = options["fresh_rounds"], tuple(int(n) for n in options["counts"].split(","))
    for matrix in ("hessian", "ggn") if rounds else ():
        found[f"fresh {matrix}"] = fresh = measure_fresh(case, counts, rounds, matrix)
        for clock in ("seconds", "cpu"):
            ratios = ", ".join(f"{r:.2f}" for r in fresh[f"{clock} over the best peer"])
            click.echo(
                f"{name}: {matrix} from a fresh operator, {counts} products, {clock} over the best peer: {ratios}"
            )
    if rounds:
        found["fresh density"] = measure_density(case, rounds)
        click.echo(f"{name}: {json.dumps(found['fresh density'])}")
    if options["rounds"]:
        found |= (steady := measure_products(case, options["rounds"], options["warm_up"]))
        found["ggn"] = measure_products(case, options["rounds"], options["warm_up"], "ggn")
        for matrix, of in (("hessian", steady), ("ggn", found["ggn"])):
            ratios = ", ".join(f"{library} {ratio:.2f}" for library, ratio in of["gradients per product"].items())
            limit = of["limit by counting matrix products"]
            click.echo(f"{name}: gradients per {matrix} product: {ratios}; limit {limit:.2f}; {of['strategy']}")
    if options["job_rounds"]:
        found["spectrum"] = measure_spectrum(case, options["job_rounds"])
        click.echo(f"{name}: spectrum {json.dumps(found['spectrum'])}")


if __name__ == "__main__":
    main()
