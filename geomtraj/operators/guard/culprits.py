"""Who is likely to blame where a problem's derivatives are not what they are taken for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from geomtraj.graphs import nodes_of
from geomtraj.problem import Problem, leaves
from geomtraj.trees import tensors_of

MOST = 24
"""How many parameters are tried one by one."""
KNOWN = {"SparseAddmmBackward": "a sparse matrix whose values are learnt", "WeightNormInterfaceBackward": "weight_norm"}
"""Operations of torch whose second derivative is known to be wrong, by the beginning of their node's name."""
OWN = ("torch.utils.checkpoint", "torch.autograd", "torch.nn", "torch._functorch", "torch._dynamo")

WAY_OUT = "With check=False gt.Problem measures all the same."


class _Lookups(TorchFunctionMode):
    """Notes, inside its `with` block, the padding rows of the tables that embeddings look up."""

    def __init__(self, places: Mapping[int, slice]):
        super().__init__()
        self._places = places  # by where a table's first number lies
        self.found: list[slice] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.embedding and len(args) + len(kwargs) > 2:
            table = kwargs.get("weight", args[1] if len(args) > 1 else None)
            row = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
            place = self._places.get(table.data_ptr()) if isinstance(table, Tensor) else None
            if row is not None and place is not None:
                width = table.shape[1]
                start = place.start + (row % table.shape[0]) * width
                self.found.append(slice(start, start + width))
        return func(*args, **kwargs)


def padding_rows(problem: Problem, theta: Tensor) -> list[slice]:
    """The places in theta of embeddings' padding rows: their gradient is zero by convention, whatever the loss does."""
    parameters = problem.layout.unflatten(theta)
    places = {parameters[name].data_ptr(): slot.slice for name, slot in problem.layout.items() if slot.size}
    with problem.session(), _Lookups(places) as lookups:
        for batch in problem.batches:
            problem.losses(parameters, batch)
    return lookups.found


def of_value(problem: Problem, theta: Tensor, scale: Tensor) -> str:
    """The sentence for a loss that changes otherwise when theta is written into the model's own parameters."""
    names = []
    for name, slot in list(problem.layout.items())[:MOST]:
        moved = problem.theta()
        moved[slot.slice] = theta[slot.slice] + 0.1 * scale[slot.slice]
        own, size = _sums(problem, moved, own=True)
        here, _ = _sums(problem, moved, own=False)
        if abs(own - here) > 1e3 * torch.finfo(problem.dtype).eps * size:
            names.append(name)
    which = f"holds {_some(names)} or numbers made of it" if names else "holds numbers made of the parameters"
    return (
        f"the loss does not only see the parameters through the model that it is given: something {which} elsewhere "
        "(a NumPy view, a detached view, a cache), so no derivative by them is right; compute it inside loss(model, "
        f"batch) from the model passed in. {WAY_OUT}"
    )


def of_gradient(problem: Problem, theta: Tensor, gradient: Tensor, v: Tensor, step: float) -> str:
    """The sentence for a gradient that is not the derivative of the loss."""
    names, eps = [], torch.finfo(problem.dtype).eps
    for name, slot in list(problem.layout.items())[:MOST]:
        shift = torch.zeros_like(theta)
        shift[slot.slice] = step * v[slot.slice]
        (ahead, size), (behind, _) = (_sums(problem, theta + s * shift, own=False) for s in (1, -1))
        terms = (gradient * shift).double()
        if abs((ahead - behind) / 2 - float(terms.sum())) > 0.05 * float(terms.norm()) + 64 * eps * size:
            names.append(name)
    rewritten = [name for name in problem.layout if name in (problem.objective.rewritten or ())]
    if rewritten:
        return (
            f"the forward pass itself writes into {_some(rewritten)} (max_norm, clamp_ or a normalisation by hand), so "
            "the gradient is not the derivative of the loss there: run the model once and switch the writing off, such "
            f"as max_norm=None. {WAY_OUT}"
        )
    functions_there = functions(problem, theta)
    culprit = f" {_some(functions_there)} is likely to blame;" if functions_there else ""
    where = f" for {_some(names)}" if names else ""
    return (
        f"the gradient is not the derivative of the loss{where}:{culprit} .detach(), stop-gradients, straight-through "
        "estimators, rounding or an argmax let autograd see another function than the one that is computed; take them "
        f"out of the loss that is measured. {WAY_OUT}"
    )


def of_products(name: str, error: float, names: list[str]) -> str:
    """The sentence for second derivatives that are not the differences of gradients."""
    culprit = (
        f"{_some(names)} is likely to blame, whose backward pass computes with something that is constant to autograd"
        if names
        else "an operation in it has a wrong second derivative, or a .detach() hides a part of it"
    )
    return (
        f"the second derivatives are not the differences of the gradients (relative difference {error:.1e} for "
        f"{name!r}): {culprit}; compute it by plain torch operations, or pass strategy='finite-differences' to "
        f"gt.Hessian. {WAY_OUT}"
    )


def of_symmetry(names: list[str]) -> str:
    """The sentence for products that are not those of a symmetric matrix."""
    culprit = f": {_some(names)} is likely to blame" if names else ""
    return (
        "the products with the Hessian are not symmetric, so the gradient is not the derivative of any function"
        f"{culprit}; a backward pass that depends on the batch or on what was computed before does that. "
        f"{WAY_OUT}"
    )


def functions(problem: Problem, theta: Tensor) -> list[str]:
    """Custom autograd functions in the loss's graph, and operations known for wrong derivatives, with their modules."""
    parameters = leaves(problem.layout.unflatten(theta))
    regions: list[tuple[str, Any, list[Any]]] = []

    def note(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
            regions.append((name, _nodes(output), _nodes(inputs)))

        return hook

    found: dict[str, Any] = {}
    with problem.session():
        handles = [m.register_forward_hook(note(name)) for name, m in problem.model.named_modules() if name]
        try:
            for batch in problem.batches:
                value = problem.batch_sum(parameters, batch)
                found |= {label: node for node in nodes_of(value.grad_fn) if (label := _suspect(node))}
        finally:
            for handle in handles:
                handle.remove()
    named = []
    for label, node in found.items():
        inside = [name for name, outputs, inputs in regions if node in set(nodes_of(*outputs, until=inputs))]
        named.append(f"{label} in {max(inside, key=len)!r}" if inside else label)
    return named


def _suspect(node: Any) -> str:
    function = getattr(node, "_forward_cls", None)
    if function is not None and not str(function.__module__).startswith(OWN):
        return str(function.__name__)
    for beginning, what in KNOWN.items():
        if node.name().startswith(beginning):
            return what
    return ""


def _nodes(item: Any) -> list[Any]:
    return [t.grad_fn for t in tensors_of(item) if t.grad_fn is not None]


def _sums(problem: Problem, theta: Tensor, own: bool) -> tuple[float, float]:
    """The loss, and the mean size of the losses, with theta in the model's own parameters or standing in for them."""
    parameters = problem.layout.unflatten(theta)
    sums = torch.zeros(2, dtype=torch.float64, device=problem.device)
    with problem.session():
        for batch in problem.batches:
            if own:
                with problem.objective.moved(parameters):
                    losses, weights = problem.objective.own_losses(batch)
            else:
                losses, weights = problem.values(parameters, batch)
            weighted = (losses if weights is None else losses * weights).detach().double()
            sums += torch.stack([weighted.sum(), weighted.abs().sum()])
    value, size = (problem.over_ranks(sums) / problem.total_weight).tolist()
    return value, size


def _some(names: list[str]) -> str:
    return ", ".join(n if " " in n else repr(n) for n in names[:3]) + (" and others" if len(names) > 3 else "")
