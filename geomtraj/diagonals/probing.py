"""The diagonal by random signs on activations, each example with its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from geomtraj.diagonals.base import Diagonal
from geomtraj.diagonals.estimator import Estimator, GraphEstimator
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
    over probes. What is done beyond that, with what it gave on a trained one-layer GPT (P = 12,984, 64 sequences of 32,
    error relative to the block's norm at 64 probes, for qkv / attention out / mlp up / mlp down / head):

    - All taps at once: 1.3 / .20 / 1.6 / .23 / .51. Each tap on its own: .10 / .069 / .12 / .058 / .027, for 1.5
      times the time (a tap's pass starts at that tap, and its outer products are the same): kept.
    - Where a tap's positions provably do not couple (after the last attention, and wherever there is one position:
      every pair of positions is tried, for exact zeros), products of different positions are left out, which are
      noise: .014 / .013 / .014 / .002 for the last four; outer products are then taken once, not for each probe. Where
      such a tap has at most `samples` units, one-hot vectors in their place make it exact.
    - H = J^T (d2L/dz2) J + R where the loss at the model's output z is diagonal or softmax-like, which is found out by
      trying. The first part comes from squares, by passes that serve all taps, with a relative error of
      sqrt(2 / (N samples)), or exactly where z has few entries; R vanishes within a layer of a piecewise linear
      network. Together .067 for qkv.
    - Signs on the entries of each example's own parameter in the place of signs on outputs: embedding .16 to .092,
      first norm .15 to .023. Always better for what has one input (biases, norms, tokens; Cauchy-Schwarz); for weights
      three probes on the first example decide, from 32 samples on.
    - Uses of the same entries (tied weights, repeated modules) are summed before multiplying; where the input of one
      depends on another, 2 g dx/dtheta is added, without which a tied embedding is off by half.
    - No gain: signs that are products of one sign per position and one per unit (cheaper outer products, but these are
      a tenth of the time, at 0.8 to 1.2 times the error), the norms all at once (4 % less time, up to twice their
      error), separate passes for query, key and value, several probes in one batched backward pass (0.7 times the
      speed on a CPU), R of all taps in one pass (two layers, P = 115,328: 140 to 670 times the variance in weights
      behind the embedding, twice in it; 1.4 to 6 times within the later half), passes recorded and simplified as
      `Hessian` does (0.7 to 0.9 times the time where it matters, for a preparation of seven).

    - In deep networks (some twenty groups of taps and more, see `geomtraj.diagonals.pilot`) R of what gains by it comes
      from two passes that serve all layers, by factored second derivatives (see `geomtraj.diagonals.factored`): at
      twice the samples the better way for weights, 10 to 100 times in variance for a layer before an activation, and
      mostly the worse for norms, which keep signs on their entries. A pilot on one example compares them part by part.
      Trained GPT of six layers (P = 182,688, 16 sequences of 64, 8 samples): standard errors .63 of those by signs
      alone in a block's rms and .52 in its median (geometric means over blocks; 2.5 at worst, in a norm) in .88 of the
      time. GPTs of 4, 8, 16 layers at random parameters take 3.7, 7.0, 17.7 s (signs alone 3.1, 10.7 for 4 and 8).

    In ReLU networks with ten outputs all this is exact. Time grows linearly with examples and with the width of layers;
    with depth too where R comes from factored second derivatives, and signs for the rest take no longer than these.
    Elsewhere R takes a pass from each tap to the loss and back, so time grows with the square of the depth. Where the
    operations of the forward pass are not what autograd differentiates, as with custom functions that hold something
    constant, it is signs alone, and the status says so.

    A parameter whose uses do not add up to its true gradient, or do not belong to one example each, is probed in
    parameter space instead, one example's copy at a time; the status says so.

    The standard error is the spread over probes, example by example: the N examples are no sample but all that L
    averages over. Measured variance of standardised errors over all entries of that GPT: 1.06, 1.03, 0.98 for 4, 8, 32
    probes, with 94.4, 94.8, 95.3 % within 1.96. With few pairs of an example and a probe they are those of Student's t
    with few degrees of freedom: 1.4 for 40 pairs; 6.6 for 2 probes in the embedding, where a token may occur in one
    example alone.

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
        graph, samples = batch.graph, self.sampling.samples
        gauss_newton: list[ProbeGroup] = []
        exact: list[Estimator] = []
        sampled: Pairs = []
        few_outputs = outputs(graph) <= max(samples, FEW_OUTPUTS)
        for group in probe_groups(graph):
            split = graph.output_hessian is not None
            if group.positions_decouple:
                positions, units = graph.shape(group.taps[0])
                if group.piecewise_linear and few_outputs and outputs(graph) <= units:
                    gauss_newton.append(group)
                    continue
                if units <= samples:
                    exact.append(UnitOneHots(group))
                    continue
                split = few_outputs and positions == 1
            if split:
                gauss_newton.append(group)
            if not (split and group.piecewise_linear):
                sampled.append((group, split))
        choice = self._chosen(sampled, batch, few_outputs)
        factored = choice.divided(sampled, True)
        gauss_newton += [group for group, split in factored if not split]
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
        sampling = replace(self.sampling, samples=samples)
        if group.positions_decouple:
            return PositionSigns(group, sampling, ids, residual)
        shared = group.shared()
        can = all(maps.has_jvp for maps in shared)
        if can and (all(maps.inputs == 1 for maps in shared) or self._compared(group, ids, residual)):
            return EntrySigns(group, sampling, ids, residual)
        return TapSigns(group, sampling, ids, residual)

    def _compared(self, group: ProbeGroup, ids: Tensor, residual: bool) -> bool:
        """Whether signs on the parameters' entries give less spread here than signs on the outputs.

        The first example alone decides, whatever its batch.
        """
        if self.sampling.samples < PILOT_FROM:
            return False
        place = tuple(group.taps)
        if place not in self.on_entries:
            pilot = range(-PILOT, 0)
            on_taps, on_entries = (
                kind(group, self.sampling, ids, residual).pilot(pilot) for kind in (TapSigns, EntrySigns)
            )
            self.on_entries[place] = on_entries < on_taps
        return self.on_entries[place]
