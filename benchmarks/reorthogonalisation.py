"""Would partial re-orthogonalisation do in Lanczos? Passes over the basis, orthogonality and Ritz values.

    python benchmarks/reorthogonalisation.py --out benchmarks/results/reorthogonalisation.json

Partial re-orthogonalisation (Simon 1984, "The Lanczos algorithm with partial reorthogonalization") estimates by a
recurrence how far the vectors have left orthogonality, and passes over the basis only where the estimate exceeds
sqrt(eps), in two steps running. The recurrence needs the size of a product's rounding error, here `noise` eps ||H||.
Compared with a pass at every step, as geomtraj makes: on matrices of prescribed spectra and on models of `engine.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import torch
from common import provenance, trained
from libraries import problem_of
from torch import Tensor

import geomtraj as gt
from geomtraj.linalg.lanczos import tridiagonal

STEPS = 64


def partial_lanczos(product: Callable[[Tensor], Tensor], start: Tensor, noise: float) -> tuple[Tensor, Tensor, int]:
    """Basis (STEPS, P), T, and at how many steps a pass was made; at all of them with infinite noise."""
    eps = torch.finfo(start.dtype).eps
    Q = torch.empty(STEPS, start.numel(), dtype=start.dtype)
    Q[0] = start / start.norm()
    alphas, betas = torch.zeros(2, STEPS, dtype=torch.float64)
    omega = torch.eye(STEPS + 1, dtype=torch.float64)
    passes, again, norm = 0, False, 0.0
    for j in range(STEPS):
        rest = product(Q[j]).clone()
        norm = max(norm, float(rest.norm()))
        if j:
            rest -= float(betas[j - 1]) * Q[j - 1]
        for _ in range(2):
            along = float(rest @ Q[j])
            rest -= along * Q[j]
            alphas[j] += along
        if j:
            rest -= (rest @ Q[j - 1]) * Q[j - 1]
        length = float(rest.norm())
        if j:
            k = torch.arange(j)
            w = betas[k] * omega[j, k + 1] + (alphas[k] - alphas[j]) * omega[j, k] - betas[j - 1] * omega[j - 1, k]
            w[1:] += betas[: j - 1] * omega[j, : j - 1]
            omega[j + 1, :j] = (w + w.sign() * noise * eps * norm) / length
        omega[j + 1, j] = eps
        lost = not bool(omega[j + 1, :j].abs().le(eps**0.5).all())
        if lost or again:
            passes += 1
            coefficients = Q[: j + 1] @ rest
            rest.addmv_(Q[: j + 1].T, coefficients, alpha=-1.0)
            alphas[j] += float(coefficients[j])
            length = float(rest.norm())
            omega[j + 1, : j + 1] = eps
            again = lost and not again
        betas[j] = length
        if j + 1 < STEPS:
            Q[j + 1] = rest / length
    return Q, tridiagonal(alphas, betas), passes


def compared(product: Callable[[Tensor], Tensor], start: Tensor, noises: list[float]) -> list[dict]:
    """For each noise: steps with a pass, orthogonality in sqrt(eps), and Ritz values against those with all passes."""
    eps = torch.finfo(start.dtype).eps
    expected = torch.linalg.eigvalsh(partial_lanczos(product, start, float("inf"))[1])
    found = []
    for noise in noises:
        Q, T, passes = partial_lanczos(product, start, noise)
        loss = float((Q @ Q.T - torch.eye(STEPS, dtype=Q.dtype)).abs().max())
        error = float((torch.linalg.eigvalsh(T) - expected).abs().max() / expected.abs().max())
        line = {
            "noise": noise,
            "passes": passes,
            "orthogonality / sqrt(eps)": loss / eps**0.5,
            "Ritz / eps": error / eps,
        }
        click.echo(f"  {line}")
        found.append(line)
    return found


def spectra() -> dict[str, Tensor]:
    """Prescribed eigenvalues."""
    bulk = torch.linspace(-0.1, 0.1, 400, dtype=torch.float64)
    return {
        "outliers": torch.cat([torch.tensor([-6.0, -3, -1.5, 1.7, 4, 9, 20], dtype=torch.float64), bulk]),
        "multiplicities": torch.cat([torch.tensor([5.0] * 3 + [3.0] * 2 + [-4.0] * 3, dtype=torch.float64), bulk]),
        "far outliers": torch.cat([torch.tensor([100.0, 50, -40], dtype=torch.float64), bulk]),
        "no outliers": 10 * bulk,
    }


@click.command()
@click.option("--models", default="mlp-1.1M,cnn-93k,gpt-117k")
@click.option("--noises", default="2,8,32,128")
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(models: str, noises: str, out: Path) -> None:
    """Run the comparison; write its numbers as JSON."""
    torch.set_num_threads(1)
    levels = [float(x) for x in noises.split(",")]
    command = f"python benchmarks/reorthogonalisation.py --models {models} --noises {noises} --out {out}"
    content = provenance(command) | {"steps": STEPS, "matrices": {}, "models": {}}
    rng = torch.Generator().manual_seed(0)
    for name, values in spectra().items():
        size = len(values)
        turned = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64)).Q
        for dtype in (torch.float32, torch.float64):
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            click.echo(label)
            matrix = ((turned * values) @ turned.T).to(dtype)
            start = torch.randn(size, generator=rng, dtype=torch.float64).to(dtype)
            content["matrices"][label] = compared(matrix.__matmul__, start, levels[:1])
    for name in models.split(","):
        click.echo(name)
        hessian = gt.Hessian(problem_of(trained(name)), strategy="double-backward")
        content["models"][name] = compared(hessian.__matmul__, torch.randn(hessian.shape[0], generator=rng), levels)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
