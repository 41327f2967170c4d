"""The trace by random signs."""

from __future__ import annotations

import torch

from geomtraj.linalg.chunks import at_least, chunk_widths
from geomtraj.linalg.estimate import Estimate, mean_of_probes
from geomtraj.operators.base import SymmetricOperator
from geomtraj.seeding import generator, rademacher


def trace(H: SymmetricOperator, probes: int = 32, seed: int = 0) -> Estimate:
    """Trace of H, the mean of v^T H v over random sign vectors v, with its standard error.

    The variance of one probe is twice the squared Frobenius norm of H without its diagonal.

    Args:
        H: The operator.
        probes: Number of products S; one gives no standard error, which the status says.
        seed: Seed of the signs.

    Raises:
        InputError: probes < 1.

    Source:
        Hutchinson 1990.
    """
    probes = at_least("probes", probes, 1)
    rng = generator(seed, "trace probes")
    like = torch.empty(0, dtype=H.dtype, device=H.device)
    forms = []
    for width in chunk_widths(H, probes):
        signs = rademacher((width, H.shape[0]), rng, like).T
        forms.append((signs * (H @ signs)).sum(0, dtype=torch.float64))
    return mean_of_probes(torch.cat(forms).cpu(), probes)
