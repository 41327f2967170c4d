"""The diagonal by random signs, with standard errors."""

from __future__ import annotations

import time

import torch

from geomtraj.diagonals.base import Cost, Diagonal, describe
from geomtraj.linalg.chunks import at_least, chunk_widths
from geomtraj.operators.base import SymmetricOperator
from geomtraj.seeding import generator, rademacher
from geomtraj.status import Code, Remark


def hutchinson(operator: SymmetricOperator, samples: int = 64, seed: int = 0) -> Diagonal:
    """Mean of v * (H v) over random sign vectors v; the spread over them gives each entry's standard error.

    The variance of entry i is (||H_i||^2 - H_ii^2) / samples.

    Args:
        operator: The operator.
        samples: Number of products; one gives no standard errors, which the status says.
        seed: Seed of the signs.

    Raises:
        InputError: samples < 1.

    Source:
        Bekas, Kokiopoulou, Saad 2007.
    """
    samples = at_least("samples", samples, 1)
    start = time.perf_counter()
    before = operator.matvecs
    rng = generator(seed, "hutchinson diagonal")
    mean = torch.zeros(operator.shape[0], dtype=operator.dtype, device=operator.device)
    squares = torch.zeros_like(mean)
    done = 0
    for width in chunk_widths(operator, samples):
        signs = rademacher((width, operator.shape[0]), rng, mean).T
        terms = signs * (operator @ signs)
        chunk_mean = terms.mean(1)
        shift = chunk_mean - mean
        squares += (terms - chunk_mean[:, None]).square().sum(1) + shift.square() * (done * width / (done + width))
        mean += shift * (width / (done + width))
        done += width
    if samples > 1:
        sem, remarks = (squares / (samples * (samples - 1))).sqrt(), []
    else:
        sem = torch.full_like(mean, torch.nan)
        remarks = [Remark(Code.FEW_SAMPLES, "one sample gives no standard errors: use at least two")]
    status = describe(mean, operator.blocks, remarks)
    cost = Cost(operator.matvecs - before, time.perf_counter() - start)
    return Diagonal(mean, sem, operator.blocks, "hutchinson", cost, status, torch.full_like(mean, samples - 1))
