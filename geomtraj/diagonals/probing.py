"""The diagonal by random signs on activations, each example with its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from geomtraj.diagonals.base import Diagonal
from geomtraj.diagonals.estimator import Estimator, GraphEstimator, Take, to_take
from geomtraj.diagonals.factored import Factored
from geomtraj.diagonals.one_hot import UnitOneHots
from geomtraj.diagonals.output_vectors import FEW_OUTPUTS, OutputOneHots, OutputSigns, outputs
from geomtraj.diagonals.over_batches import Method, estimated
from geomtraj.diagonals.parameter_signs import ParameterSigns
from geomtraj.diagonals.parts import Choice
from geomtraj.diagonals.pilot import PROBES, Pairs, Ways, choose
from geomtraj.diagonals.sampling import Sampling
from geomtraj.diagonals.signs import EntrySigns, PositionSigns, TapSigns
from geomtraj.layers.batches import Batch
from geomtraj.layers.probe_groups import ProbeGroup, probe_groups
from geomtraj.layers.replay import NotReplayed
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
        choice: What is estimated by factored second derivatives, once the first batch has told.
        remarks: What is to be said of all entries.
    """

    sampling: Sampling
    on_entries: dict[tuple[int, ...], bool] = field(default_factory=dict)
    choice: Choice | None = None
    remarks: list[str] = field(default_factory=list)
    name = "probing"

    def explained(self, batch: Batch) -> list[Estimator]:
        """The Gauss-Newton part of all groups together, then what is left of each, one after the other."""
        graph, few_outputs = batch.graph, outputs(batch.graph) <= max(self.sampling.samples, FEW_OUTPUTS)
        gauss_newton: list[ProbeGroup] = []
        exact: list[Estimator] = []
        sampled: Pairs = []
        for group in probe_groups(graph):
            _, units = graph.shape(group.taps[0])
            by_units = group.positions_decouple and units <= self.sampling.samples
            by_outputs = graph.output_hessian is not None
            if by_units:  # then random outputs would be less than exact, and one-hot ones may be more work
                by_outputs = few_outputs and (outputs(graph) <= units or not group.piecewise_linear)
            if by_outputs:
                gauss_newton.append(group)
            take = to_take(group, by_outputs)
            if take is not None and by_units:
                exact.append(UnitOneHots(group, take))
            elif take is not None:
                sampled.append((group, by_outputs))
        choice = self._chosen(sampled, batch, few_outputs)
        factored = choice.divided(sampled, True)
        rest = [*exact, *self._all_signs(choice.divided(sampled, False), batch, choice.signs_samples)]
        if factored:
            rest.append(self._factored(factored, batch, choice.factored_samples))
        if not gauss_newton:
            return rest
        if few_outputs:
            return [OutputOneHots(graph, gauss_newton), *rest]
        return [self._output_signs(gauss_newton, batch.ids, choice.factored_samples), *rest]

    def _chosen(self, sampled: Pairs, batch: Batch, few_outputs: bool) -> Choice:
        """What the first batch's pilot chose; signs alone where there was none."""
        samples = self.sampling.samples
        if self.choice is None:
            first = batch.ids[:1]
            ways = Ways(
                lambda group, split: self._signs(group, first, split, PROBES),
                lambda groups: Factored(groups, replace(self.sampling, samples=PROBES), first, list),
                None if few_outputs else lambda groups: self._output_signs(groups, first, PROBES),
            )
            try:
                found = choose(sampled, samples, ways)
            except NotReplayed as error:
                found = None
                self._fell_back(str(error))
            self.choice = found or Choice(frozenset(), samples, samples)
        return self.choice

    def _fell_back(self, why: str) -> None:
        if why:
            self.remarks.append(f"the residual part is probed layer by layer: {why}")

    def _factored(self, pairs: Pairs, batch: Batch, samples: int) -> Estimator:
        """Factored second derivatives, or signs where the batch's operations are not all seen."""

        def otherwise() -> list[Estimator]:
            self._fell_back(found.failed)
            return self._all_signs(pairs, batch, self.sampling.samples)

        found = Factored([g for g, _ in pairs], replace(self.sampling, samples=samples), batch.ids, otherwise)
        return found

    def _all_signs(self, pairs: Pairs, batch: Batch, samples: int) -> list[Estimator]:
        return [self._signs(group, batch.ids, split, samples) for group, split in pairs]

    def _output_signs(self, groups: list[ProbeGroup], ids: Tensor, samples: int) -> OutputSigns:
        sampling = replace(self.sampling, samples=samples)
        return OutputSigns(groups[0].graph, groups, sampling, ids, "probing, outputs")

    def unexplained(self, batch: Batch) -> Estimator:
        """Signs on the parameters."""
        return ParameterSigns(batch.unexplained, self.sampling, batch.ids)

    def _signs(self, group: ProbeGroup, ids: Tensor, residual: bool, samples: int) -> GraphEstimator:
        """Signs for the whole second derivative, or for the `residual` part, where they give the least spread."""
        sampling, take = replace(self.sampling, samples=samples), Take.RESIDUAL if residual else Take.WHOLE
        if group.positions_decouple:
            return PositionSigns(group, take, sampling, ids)
        shared = group.shared()
        can = all(maps.has_jvp for maps in shared)
        if can and (all(maps.inputs == 1 for maps in shared) or self._compared(group, take, ids)):
            return EntrySigns(group, take, sampling, ids)
        return TapSigns(group, take, sampling, ids)

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
