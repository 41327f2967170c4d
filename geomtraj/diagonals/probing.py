"""The diagonal by random signs on activations, each example with its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from geomtraj.diagonals.base import Diagonal
from geomtraj.diagonals.estimator import Estimator, Take, to_take
from geomtraj.diagonals.one_hot import UnitOneHots
from geomtraj.diagonals.output_vectors import FEW_OUTPUTS, OutputOneHots, OutputSigns, outputs
from geomtraj.diagonals.over_batches import Method, estimated
from geomtraj.diagonals.parameter_signs import ParameterSigns
from geomtraj.diagonals.sampling import Sampling
from geomtraj.diagonals.signs import EntrySigns, PositionSigns, TapSigns
from geomtraj.layers.batches import Batch
from geomtraj.layers.probe_groups import ProbeGroup, probe_groups
from geomtraj.linalg.chunks import at_least
from geomtraj.problem import Problem

PILOT = 3
"""Vectors with which two ways of probing a weight are compared."""
PILOT_FROM = 32
"""Samples from which that comparison is worth its vectors."""


def probing(problem: Problem, samples: int = 64, seed: int = 0, theta: Tensor | None = None) -> Diagonal:
    """The Hessian diagonal by random signs for each example, with standard errors; all entries of a weight at once.

    Perturbations eps are added wherever a parameter enters linearly: (B, T, U) at the output of a weight. With random
    signs v there and u = (d2L_n/deps2) v, the estimate for the weight's entry (i, j) is the sum over examples n of
    (v_n^T x_n)_ij (u_n^T x_n)_ij. Each example has signs of its own, so the noise averages over examples as well as
    over probes. The Gauss-Newton part of H, where the loss allows it, comes from squares, by passes that serve all
    taps; only what is left is probed, one group of taps after the other. What is done beyond that, and what it gave,
    stands in `docs/diagonal.md`.

    A parameter whose uses do not add up to its true gradient, or do not belong to one example each, is probed in
    parameter space instead, one example's copy at a time; the status says so, and its parts are not told apart.

    The standard error is the spread over probes, example by example: the N examples are no sample but all that L
    averages over.

    Signs belong to the example, so that other batches of the same data give the same numbers up to rounding.

    Args:
        problem: The loss. Its examples must not depend on each other.
        samples: Probes for each tap; one gives no standard errors, which the status says.
        seed: Seed of the signs.
        theta: Where to measure (P,); the problem's current parameters if left out.

    Returns:
        The diagonal; `cost.matvecs` counts derivatives along one vector, from one tap each, over the whole data.

    Raises:
        InputError: samples < 1, theta does not fit, or examples depend on each other: batch statistics, or an example
            alone has another loss than in its batch.

    Source:
        Martens, Sutskever, Swersky 2012, "Estimating the Hessian by back-propagating curvature", for signs on
        activations. Dangel, Kunstner, Hennig 2020, "BackPACK", for the exact Gauss-Newton diagonal.
    """
    return estimated(problem, theta, Probing(Sampling(at_least("samples", samples, 1), seed, problem.examples)))


@dataclass
class Probing(Method):
    """One-hot vectors where they are few, else signs.

    Attributes:
        sampling: How many random vectors.
        on_entries: For groups of taps that have been compared: whether signs on entries give less spread.
    """

    sampling: Sampling
    on_entries: dict[tuple[int, ...], bool] = field(default_factory=dict)
    name = "probing"

    def explained(self, batch: Batch) -> list[Estimator]:
        """The Gauss-Newton part of all groups together, then what is left of each, one after the other."""
        graph, few_outputs = batch.graph, outputs(batch.graph) <= max(self.sampling.samples, FEW_OUTPUTS)
        gauss_newton: list[ProbeGroup] = []
        rest: list[Estimator] = []
        for group in probe_groups(graph):
            _, units = graph.shape(group.taps[0])
            by_units = group.positions_decouple and units <= self.sampling.samples
            by_outputs = graph.output_hessian is not None
            if by_units:  # then random outputs would be less than exact, and one-hot ones may be more work
                by_outputs = few_outputs and (outputs(graph) <= units or not group.piecewise_linear)
            if by_outputs:
                gauss_newton.append(group)
            take = to_take(group, by_outputs)
            if take is not None:
                rest.append(UnitOneHots(group, take) if by_units else self._signs(group, take, batch.ids))
        if not gauss_newton:
            return rest
        if few_outputs:
            return [OutputOneHots(graph, gauss_newton), *rest]
        return [OutputSigns(graph, gauss_newton, self.sampling, batch.ids, "probing, outputs"), *rest]

    def unexplained(self, batch: Batch) -> Estimator:
        """Signs on the parameters."""
        return ParameterSigns(batch.unexplained, self.sampling, batch.ids)

    def _signs(self, group: ProbeGroup, take: Take, ids: Tensor) -> Estimator:
        """Signs where they give the least spread."""
        if group.positions_decouple:
            return PositionSigns(group, take, self.sampling, ids)
        shared = group.shared()
        can = all(maps.has_jvp for maps in shared)
        if can and (all(maps.inputs == 1 for maps in shared) or self._compared(group, take, ids)):
            return EntrySigns(group, take, self.sampling, ids)
        return TapSigns(group, take, self.sampling, ids)

    def _compared(self, group: ProbeGroup, take: Take, ids: Tensor) -> bool:
        """Whether signs on the parameters' entries give less spread here than signs on the outputs.

        The first example alone decides, whatever its batch.
        """
        if self.sampling.samples < PILOT_FROM:
            return False
        place = tuple(group.taps)
        if place not in self.on_entries:
            pilot = range(-PILOT, 0)
            on_taps, on_entries = (
                kind(group, take, self.sampling, ids).pilot(pilot) for kind in (TapSigns, EntrySigns)
            )
            self.on_entries[place] = on_entries < on_taps
        return self.on_entries[place]
