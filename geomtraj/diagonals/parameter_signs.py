"""Random signs on parameters, each example with its own: for parameters that enter in ways that are not understood."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from geomtraj.diagonals.accumulators import MeanVariance
from geomtraj.errors import ExamplesInteract
from geomtraj.hashed_signs import key_of, signs
from geomtraj.layers.batches import COUPLED, check_alone, loss_sums, same_losses, stands_alone
from geomtraj.layers.output_hessian import close
from geomtraj.problem import Problem, leaves
from geomtraj.slicing import cut, rebuilt, tensors_of

BY_EXAMPLE = "probed in parameter space, each example with its own signs"
BY_BATCH = "probed in parameter space, the examples of a batch sharing their signs, which gives larger errors"

Add = Callable[[str, "Tensor | None", MeanVariance], None]


def probe_parameters(
    problem: Problem,
    parameters: Mapping[str, Tensor],
    elsewhere: dict[str, str],
    batch: Any,
    numbers: Tensor,
    samples: int,
    seed: int,
    add: Add,
) -> int:
    """Add the estimates of one batch by probes on the parameters named in `elsewhere`; how is noted there.

    Args:
        problem: The loss; its `session()` must be active.
        parameters: Every selected parameter.
        elsewhere: Name of each parameter to be probed -> how it was done.
        batch: One batch.
        numbers: Numbers (B,) of its examples in the data.
        samples: Probes.
        seed: Seed of the signs.
        add: Called with name, None and the estimates.

    Returns:
        The number of second derivatives of the batch taken.

    Raises:
        ExamplesInteract: An example alone has another loss than in its batch, or their second derivatives are coupled.
    """
    names = [name for name in parameters if name in elsewhere]
    whole = loss_sums(*problem.values(parameters, batch))
    parts = cut(batch, len(whole))
    if parts is not None and not stands_alone(problem, parameters, parts[0]):
        parts = None
    if parts is not None and any(elsewhere[name] == COUPLED for name in names):
        check_alone(torch.cat([loss_sums(*problem.values(parameters, part)) for part in parts]), whole)
        raise ExamplesInteract(
            "the second derivative of the loss couples the examples of a batch, though their losses alone are those "
            "within it, which method 'probing' cannot handle: take method 'xdiag' or 'exact'."
        )
    how = BY_BATCH if parts is None and len(whole) > 1 else BY_EXAMPLE
    for name in names:
        elsewhere[name] = how if how == BY_BATCH else (elsewhere[name] or how)
    products = 0.0
    for graph, rows in _graphs(problem, parameters, names, batch, parts, whole):
        products += _probe(graph, names, numbers[rows], samples, seed, add) * graph.share
    return round(products)


class _Graph:
    """Gradients of loss sums by leaves with one row for each independently probed part: name -> (R, *shape).

    Args:
        value: The sum of the parts' losses.
        own: The leaves.
        share: Which share of the batch this is.
    """

    def __init__(self, value: Tensor, own: dict[str, Tensor], share: float = 1.0):
        self.own = own
        self.share = share
        self.rows = next(iter(own.values())).shape[0]
        found: tuple[Tensor | None, ...] = (None,) * len(own)
        if value.requires_grad:
            found = torch.autograd.grad(value, list(own.values()), create_graph=True, allow_unused=True)
        self.gradients = dict(zip(own, found, strict=True))

    def product(self, name: str, z: Tensor) -> Tensor:
        """Each row's second derivative by one parameter, times z (R, *shape)."""
        gradient = self.gradients[name]
        if gradient is None or not gradient.requires_grad:
            return torch.zeros_like(z)
        (u,) = torch.autograd.grad(
            gradient, self.own[name], z, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return u


def _probe(graph: _Graph, names: list[str], numbers: Tensor, samples: int, seed: int, add: Add) -> int:
    for name in names:
        key = key_of(seed, f"probing, parameter {name}")
        leaf = graph.own[name]
        mean, squares = torch.zeros_like(leaf), torch.zeros_like(leaf)
        for probe in range(samples):
            z = signs(key, numbers[: graph.rows], probe, tuple(leaf.shape[1:]), leaf.dtype)
            shift = z * graph.product(name, z) - mean
            mean += shift / (probe + 1)
            squares += shift.square() * (probe / (probe + 1))
        variances = squares.reshape(len(squares), -1) / (samples * (samples - 1) if samples > 1 else torch.nan)
        uncertainty = 2 * variances.double().square().sum(0) / (samples + 1)
        add(name, None, MeanVariance(mean.sum(0).flatten(), variances.sum(0), uncertainty))
    return samples * len(names)


def _graphs(
    problem: Problem,
    parameters: Mapping[str, Tensor],
    names: list[str],
    batch: Any,
    parts: list[Any] | None,
    whole: Tensor,
) -> Iterator[tuple[_Graph, slice]]:
    if parts is None:
        yield _part(problem, parameters, names, batch)[0], slice(None)
        return
    together = _mapped(problem, parameters, names, batch, whole) if len(parts) > 1 else None
    if together is not None:
        yield together, slice(None)
        return
    for n, part in enumerate(parts):
        graph, values = _part(problem, parameters, names, part)
        check_alone(values, whole[n : n + 1])
        graph.share = 1 / len(parts)
        yield graph, slice(n, n + 1)


def _part(problem: Problem, parameters: Mapping[str, Tensor], names: list[str], batch: Any) -> tuple[_Graph, Tensor]:
    """The graph of a whole batch with one row of leaves, and its examples' losses."""
    own = leaves({name: parameters[name][None] for name in names})
    values = loss_sums(*problem.losses({**parameters, **{name: p[0] for name, p in own.items()}}, batch))
    return _Graph(values.sum(), own), values.detach()


def _mapped(
    problem: Problem, parameters: Mapping[str, Tensor], names: list[str], batch: Any, whole: Tensor
) -> _Graph | None:
    """The graph with a row of leaves for each example, by torch.func.vmap; None if it cannot or goes wrong there."""
    own = leaves({name: parameters[name].expand(len(whole), *parameters[name].shape) for name in names})

    def alone(rows: dict[str, Tensor], tensors: list[Tensor]) -> Tensor:
        rest = iter(tensors)
        part = rebuilt(batch, lambda _tensor: next(rest)[None])
        return loss_sums(*problem.losses({**parameters, **rows}, part))[0]

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of batching rules that vmap lacks: slow, not wrong
            values = torch.func.vmap(alone)(own, list(tensors_of(batch)))
            graph = _Graph(values.sum(), own)
            usual, _ = _part(problem, parameters, names, batch)
            right = same_losses(values.detach(), whole) and all(_agree(graph, usual, name) for name in names)
    except Exception:  # whatever vmap does not know: the examples are then taken one by one
        return None
    return graph if right else None


def _agree(graph: _Graph, usual: _Graph, name: str) -> bool:
    """Whether the rows' second derivatives along one vector sum to the batch's."""
    shape = graph.own[name].shape
    one = torch.zeros(1, dtype=torch.int64, device=graph.own[name].device)
    z = signs(key_of(0, "agreement"), one, 0, tuple(shape[1:]), graph.own[name].dtype)
    return close(graph.product(name, z.expand(shape)).sum(0), usual.product(name, z)[0])
