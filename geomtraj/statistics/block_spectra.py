"""How different the spectra of the Hessian's blocks are: Jensen-Shannon divergences of their densities."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, rel_entr, stdtrit

from geomtraj.errors import InputError
from geomtraj.linalg import spectral_density
from geomtraj.statistics.base import Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code, Remark, Status

SCALES = ("linear", "log")


@dataclass(frozen=True)
class BlockSpectra(Statistic):
    """The mean Jensen-Shannon divergence over all pairs of blocks' spectral densities: "heterogeneity", in [0, ln 2].

    Each block's eigenvalues, weighted equally, are smoothed by a Gaussian of `width` times the range of all blocks and
    put into `bins` bins of that range; natural logarithms. The axis is asinh(1000 lambda / max |lambda|), on which
    spectra of other sizes are apart; on a "linear" `scale` all but the widest blocks are spikes at zero. Small blocks
    are taken from all their eigenvalues, others from stochastic Lanczos quadrature, whose weights are used; noise makes
    densities differ more, so that the mean is corrected by the jackknife over the probes, which gives the 95 % interval
    too. A block that the loss does not reach is left out; of one block alone there is nothing to compare.

    The details hold the blocks' names; the arrays "grid" (bins,), "densities" (blocks, bins), mass in each bin, and
    "divergences" (blocks, blocks).

    Cost: `steps` times `probes` products for each large block, of its own parameters alone; as many as entries for a
    small one.

    Attributes:
        steps: Lanczos steps.
        probes: Random starts.
        bins: Of the common axis.
        width: Of the Gaussian, relative to the range.
        scale: "linear" or "log".
        dense: Blocks of at most this many entries are taken from all their eigenvalues.
        vectors: Whether blocks of vectors (biases, norms) take part.
        seed: Of the starts.

    Source: Zhang et al. (2024), arXiv 2402.16788, section 2.
    """

    name = "block_spectra"
    title = "heterogeneity of the blocks' spectra"

    steps: int = 32
    probes: int = 4
    bins: int = 200
    width: float = 0.01
    scale: str = "log"
    dense: int = 256
    vectors: bool = False
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The mean divergence and the densities behind it."""
        if self.scale not in SCALES or self.bins < 2 or not self.width > 0:
            raise InputError(f"block_spectra takes scale 'linear' or 'log', bins >= 2 and width > 0, not {self}.")
        H, unused = point.hessian, set(point.problem.unused)
        chosen = [
            name for name, block in H.blocks.items()
            if (self.vectors or block.kind != "vector") and not unused.issuperset(block.parameters)
        ]  # fmt: skip
        if len(chosen) < 2:
            return without(f"{len(chosen)} block takes part: there is no pair to compare", Code.LEFT_OUT)
        spectra, spent, remarks = [], 0, []
        for name in chosen:
            part, size = H.block(name), H.blocks[name].size
            if size <= self.dense:
                values = np.linalg.eigvalsh(part.dense().double().cpu().numpy())
                spectra.append([(values, np.full(size, 1 / size))] * self.probes)
                spent += size
            else:
                found = spectral_density(part, min(self.steps, size), self.probes, self.seed)
                weights = found.weights / found.weights.sum(1, keepdim=True)
                spectra.append(list(zip(found.nodes.numpy(), weights.numpy(), strict=True)))
                spent += found.matvecs
                if found.status != "ok":
                    remarks.append(Remark(Code.NOTE, f"{name}: {found.status}", name))
        if not all(np.isfinite(nodes).all() for block in spectra for nodes, _ in block):
            return without("products with the Hessian are not finite", Code.NOT_FINITE)
        grid, masses = self._binned(spectra)  # (blocks, probes, bins)
        each = divergences(masses.mean(1))
        quantity = self._interval(masses, exact=all(H.blocks[name].size <= self.dense for name in chosen))
        arrays = {"grid": grid, "densities": masses.mean(1), "divergences": each}
        return Outcome({"heterogeneity": quantity}, {"blocks": chosen}, Status(remarks), spent, arrays)

    def _binned(self, spectra: list) -> tuple[np.ndarray, np.ndarray]:
        """Middles of the bins, in eigenvalues, and the smoothed mass of each probe of each block in them."""
        top = max(float(np.abs(nodes).max()) for block in spectra for nodes, _ in block) or 1.0

        def axis(x: np.ndarray) -> np.ndarray:
            return x if self.scale == "linear" else np.arcsinh(1000 * x / top)

        low = min(float(axis(nodes).min()) for block in spectra for nodes, _ in block)
        high = max(float(axis(nodes).max()) for block in spectra for nodes, _ in block)
        span = (high - low) or 1.0
        width = self.width * span
        edges = np.linspace(low - 3 * width, high + 3 * width, self.bins + 1)
        cut = np.concatenate([[-np.inf], edges[1:-1], [np.inf]])
        masses = np.array(
            [[np.diff(ndtr((cut[:, None] - axis(n)) / width), axis=0) @ w for n, w in block] for block in spectra]
        )
        middles = (edges[1:] + edges[:-1]) / 2
        return (middles if self.scale == "linear" else np.sinh(middles) * top / 1000), masses

    def _interval(self, masses: np.ndarray, exact: bool) -> Quantity:
        value = mean_divergence(masses.mean(1))
        probes = masses.shape[1]
        if exact:
            return Quantity.exact(value)
        if probes < 2:
            return Quantity(value)
        left = np.array([mean_divergence(np.delete(masses, i, 1).mean(1)) for i in range(probes)])
        value = min(max(probes * value - (probes - 1) * float(left.mean()), 0.0), math.log(2))
        sem = math.sqrt((probes - 1) / probes * float(((left - left.mean()) ** 2).sum()))
        half = float(stdtrit(probes - 1, 0.975)) * sem
        return Quantity(value, max(value - half, 0.0), min(value + half, math.log(2)))


def divergences(masses: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (n, n), in nats, of each pair of distributions (n, bins)."""
    found = np.zeros((len(masses), len(masses)))
    for i, j in itertools.combinations(range(len(masses)), 2):
        middle = (masses[i] + masses[j]) / 2
        found[i, j] = found[j, i] = 0.5 * (rel_entr(masses[i], middle) + rel_entr(masses[j], middle)).sum()
    return found


def mean_divergence(masses: np.ndarray) -> float:
    """The mean over pairs."""
    return float(divergences(masses)[np.triu_indices(len(masses), 1)].mean())
