"""Time from a fresh operator: what its first products cost, preparation and choice of a strategy included."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import curvlinops
import hessian_eigenthings
import torch
from common import Trained
from devices import synchronise
from libraries import Product, device_of, eigenthings, factories, in_math, linops, merged, problem_of

import geomtraj as gt
from geomtraj.operators.evaluation.timings import STRUCTURES

COUNTS = (1, 10, 40, 256)
DENSITY = 40
NEW = "geomtraj, new problem"
"""A fresh operator of a fresh problem, whose derivatives are checked first."""


def measure_fresh(case: Trained, counts: tuple[int, ...], rounds: int, matrix: str = "hessian") -> dict:
    """Seconds to so many products by an operator that is made anew, for each library, in rounds of alternating order.

    "seconds" are by the clock on the wall, "cpu" those of all threads of this process, which other work on the machine
    disturbs less. The process has learnt nothing of the model's structure each time.

    Args:
        case: The model and its data.
        counts: Numbers of products.
        rounds: How often; medians are taken over the rounds.
        matrix: "hessian" or "ggn".
    """
    vectors = torch.randn(max(counts), case.problem.size, generator=torch.Generator().manual_seed(0))
    vectors = vectors.to(device_of(case))
    names = [*factories(case, case.problem)[matrix], NEW]
    wall: dict[str, list[list[float]]] = {name: [] for name in names}
    cpu: dict[str, list[list[float]]] = {name: [] for name in names}
    for n in range(rounds):
        for name in names[:: -1 if n % 2 else 1]:
            STRUCTURES.clear()
            seconds, own = _until(_maker(case, matrix, name), vectors, counts)
            wall[name].append(seconds)
            cpu[name].append(own)
    found = {"counts": list(counts), "seconds": _medians(wall), "cpu": _medians(cpu)}
    for clock in ("seconds", "cpu"):
        ours, peers = found[clock]["geomtraj"], [found[clock][p] for p in names if "geomtraj" not in p]
        best = [min(at) for at in zip(*peers, strict=True)]
        found[f"{clock} over the best peer"] = [a / b for a, b in zip(ours, best, strict=True)]
    return found


def _maker(case: Trained, matrix: str, name: str) -> Callable[[], Product]:
    if name == NEW:
        return lambda: factories(case, problem_of(case))[matrix]["geomtraj"]()
    problem = problem_of(case)
    (gt.GGN if matrix == "ggn" else gt.Hessian)(problem).check()  # checked as it is where other operators came before
    return factories(case, problem)[matrix][name]


def _until(make: Callable[[], Product], vectors: torch.Tensor, counts: tuple[int, ...]) -> tuple[list, list]:
    """Seconds, on the wall and of the process, until so many products are made."""
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    product = make()
    seconds, own = [], []
    for n, vector in enumerate(vectors, 1):
        product(vector)
        if n in counts:
            synchronise()
            seconds.append(time.perf_counter() - wall)
            own.append(time.process_time() - cpu)
    return seconds, own


def _medians(of: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    return {name: [statistics.median(each) for each in zip(*rounds, strict=True)] for name, rounds in of.items()}


def measure_density(case: Trained, rounds: int) -> dict:
    """Seconds of a density of 40 steps from one probe, from a fresh operator."""
    batch = merged(case)

    def ours(problem: gt.Problem) -> Callable[[], object]:
        return lambda: gt.spectral_density(gt.Hessian(problem), steps=DENSITY, probes=1)

    def theirs() -> object:
        operator = eigenthings(case, batch)
        return hessian_eigenthings.spectral_density(operator, num_runs=1, lanczos_steps=DENSITY, seed=0)

    jobs = {
        "geomtraj": ours,
        "hessian-eigenthings": lambda _: in_math(theirs),
        "curvlinops": lambda _: in_math(
            lambda: curvlinops.lanczos_approximate_spectrum(linops(case, batch), DENSITY, num_repeats=1)
        ),
    }
    wall: dict[str, list[list[float]]] = {name: [] for name in [*jobs, NEW]}
    cpu: dict[str, list[list[float]]] = {name: [] for name in [*jobs, NEW]}
    for n in range(rounds):
        for name in list(wall)[:: -1 if n % 2 else 1]:
            STRUCTURES.clear()
            problem = problem_of(case)
            if name != NEW:
                gt.Hessian(problem).check()
            job = jobs.get(name, ours)(problem)
            synchronise()
            start, own = time.perf_counter(), time.process_time()
            job()
            synchronise()
            wall[name].append([time.perf_counter() - start])
            cpu[name].append([time.process_time() - own])
    found: dict = {"seconds": _medians(wall), "cpu": _medians(cpu)}
    for clock in ("seconds", "cpu"):
        found[f"{clock} over hessian-eigenthings"] = (
            found[clock]["geomtraj"][0] / found[clock]["hessian-eigenthings"][0]
        )
    return found
