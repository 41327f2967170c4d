"""A batch's output as the operations that make it, each with its own second derivative.

The residual part of the Hessian by the taps is R = sum_o J_o^T C_o J_o: J_o is the derivative of what operation o takes
by the taps, and C_o the second derivative of <g_o, o(y)> by what it takes, with g_o the gradient of the loss by what it
gives. Only operations that bend have a C_o; where one hands everything on to a single other, with no tap in between, as
the products with queries and keys, the softmax and the products with values of attention do, they are one operation.

The operations are those that torch dispatches in a forward pass, whatever module, function or user's code called them.
They are run again one by one, with the values between them in hand, and whether they are all is checked: output,
gradient and a product with R must be those of autograd.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from geomtraj.errors import ComputationError, GeomtrajError
from geomtraj.failures import is_out_of_memory
from geomtraj.hashed_signs import key_of, signs
from geomtraj.layers.graph import LossGraph, example_axis, mixture
from geomtraj.layers.output_hessian import close
from geomtraj.layers.parameter_use import ExampleAxis
from geomtraj.operators.hvp.recording import aten, record

REARRANGEMENTS = {
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.t.default, aten.transpose.int,
    aten.permute.default, aten.squeeze.dim, aten.squeeze.default, aten.unsqueeze.default, aten.select.int,
    aten.slice.Tensor, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.clone.default,
    aten.alias.default, operator.getitem,
}  # fmt: skip
Vectors = Sequence["Tensor | None"]


class NotReplayed(Exception):
    """Why a forward pass cannot be run again operation by operation."""


@dataclass
class Direct:
    """Something an operation takes that is a tap's output, or entries of it in another arrangement.

    Attributes:
        tap: Number of the tap.
        places: Place in the tap's flattened perturbation of each entry.
        curvature: Second derivative by each entry: there is none by two of them.
    """

    tap: int
    places: Tensor
    curvature: Tensor


@dataclass
class Operation:
    """An operation with a second derivative C.

    Attributes:
        inputs: What it takes that depends on taps, in the replay's graph.
        axes: Where each holds its examples.
        diagonal: C, shaped like the only input, if it is diagonal; else None.
        direct: By number of an input, where it is a tap's output and C has no entries off the diagonal within the tap.
    """

    inputs: list[Tensor]
    axes: list[ExampleAxis]
    leaves: list[Tensor]
    gradients: list[Tensor | None]
    diagonal: Tensor | None = None
    direct: dict[int, Direct] = field(default_factory=dict)

    def product(self, vectors: Vectors) -> list[Tensor]:
        """C times vectors shaped like the inputs, None for zeros."""
        if self.diagonal is not None:
            return [torch.zeros_like(self.diagonal) if v is None else self.diagonal * v for v in vectors]
        pairs = [
            (g, v)
            for g, v in zip(self.gradients, vectors, strict=True)
            if g is not None and g.requires_grad and v is not None
        ]
        if not pairs:
            return [torch.zeros_like(leaf) for leaf in self.leaves]
        return list(
            torch.autograd.grad(
                [g for g, _ in pairs], self.leaves, [v for _, v in pairs],
                retain_graph=True, allow_unused=True, materialize_grads=True,
            )
        )  # fmt: skip

    def trial(self, number: int) -> list[Tensor]:
        """Signs times unequal sizes shaped like the inputs, under which nothing cancels by accident."""
        return [unequal(leaf, axis, number) for leaf, axis in zip(self.leaves, self.axes, strict=True)]


def unequal(like: Tensor, axis: ExampleAxis, number: int) -> Tensor:
    """Signs times sizes from 0.5 to 1.5 in the shape of a tensor, the same for each example whatever its batch."""
    examples = torch.zeros(axis.examples, dtype=torch.int64, device=like.device)
    size = like.numel() // axis.examples
    sizes = 0.5 + torch.arange(size, device=like.device).to(like.dtype).mul_(0.6180339887498949).fmod_(1)
    return axis.placed(signs(key_of(0, "trial"), examples, number, (size,), like.dtype) * sizes, like.shape)


class Replay:
    """The output of one batch as a function of perturbations at its taps, operation by operation.

    Args:
        graph: The batch; its loss must have an output with a known curvature, and the problem's session be active.

    Attributes:
        operations: Those that bend.

    Raises:
        NotReplayed: The pass cannot be recorded, or what was recorded is not what autograd differentiates.
    """

    def __init__(self, graph: LossGraph):
        self.graph = graph
        self._epses = [torch.zeros_like(tap.eps, requires_grad=True) for tap in graph.every_tap]
        self._numbers = [next(k for k, t in enumerate(graph.every_tap) if t is tap) for tap in graph.taps]
        try:
            recorded = record(lambda given: [graph.output_again(given)], self._epses, cut_at_detach=True)
            self._nodes = _Nodes(recorded, self._epses)
        except (RuntimeError, StopIteration) as error:
            if is_out_of_memory(error) or (
                isinstance(error, GeomtrajError) and not isinstance(error, ComputationError)
            ):
                raise
            raise NotReplayed("its operations cannot be recorded") from error
        self.output = self._nodes.values[self._nodes.output]
        self._check_output()
        self.operations = self._find()

    def _check_output(self) -> None:
        graph = self.graph
        if not self.output.requires_grad or not close(self.output.detach(), graph.output.detach()):
            raise NotReplayed("its operations give another output when they are run again")
        found = self.vjp([self.output], [graph.output_gradient], range(len(graph.taps)))
        if not all(close(one, graph.gradient(n)) for n, one in found.items()):
            raise NotReplayed("its operations have other derivatives than autograd, as custom functions may")

    def vjp(self, outputs: list[Tensor], along: list[Tensor], numbers: Iterable[int]) -> dict[int, Tensor]:
        """The derivative of <along, outputs> by the perturbations at these taps, (B, T, U) each."""
        numbers = list(numbers)
        self.graph.products += 1
        found = torch.autograd.grad(
            outputs, [self._epses[self._numbers[n]] for n in numbers], along,
            retain_graph=True, allow_unused=True, materialize_grads=True,
        )  # fmt: skip
        return {n: self.graph.arranged(n, u) for n, u in zip(numbers, found, strict=True)}

    def check_product(self) -> None:
        """Refuse operations whose second derivatives do not add up to R, by one product with it at all taps.

        Raises:
            NotReplayed: They do not.
        """
        graph, inputs = self.graph, [y for o in self.operations for y in o.inputs]
        v = {n: graph.unequal(n) for n in range(len(graph.taps))}
        sums: list[Tensor] = [torch.zeros_like(u) for u in v.values()]
        if inputs:
            dummies = [torch.zeros_like(y, requires_grad=True) for y in inputs]
            epses = [self._epses[k] for k in self._numbers]
            options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
            pulled = torch.autograd.grad(inputs, epses, dummies, create_graph=True, **options)
            along = [graph.restored(n, vector) for n, vector in v.items()]
            moved = iter(torch.autograd.grad(pulled, dummies, along, **options))
            bent = [u for o in self.operations for u in o.product([next(moved) for _ in o.inputs])]
            sums = list(self.vjp(inputs, bent, v).values())
        true = graph.curvature(list(v), [u.unsqueeze(1) for u in v.values()], residual=True)
        if not all(close(one, other[:, 0]) for one, other in zip(sums, true, strict=True)):
            raise NotReplayed("the second derivatives of its operations are not autograd's, as of custom functions")

    def share_after(self, numbers: Iterable[int]) -> float:
        """Which share of the forward pass's work depends on these taps."""
        return self._nodes.share(sum(1 << self._numbers[n] for n in numbers))

    def work(self, examples: int) -> float:
        """Roughly what a forward pass over so many examples costs, in multiplications."""
        return self._nodes.work(examples / self.graph.examples)

    def _find(self) -> list[Operation]:
        nodes, graph = self._nodes, self.graph
        bending = nodes.bending(self.output, graph.output_gradient)
        regions = nodes.regions(bending)
        taken = [nodes.taken(region) for region in regions]
        axes = self._axes(list(dict.fromkeys(node for every in taken for node in every)))
        tap_of = {k: n for n, k in enumerate(self._numbers)}
        found = []
        for region, every in zip(regions, taken, strict=True):
            operation = self._operation(region, every, bending[region[-1]], axes)
            if operation is not None:
                operation.direct = self._direct(operation, every, tap_of)
                found.append(operation)
        return found

    def _operation(
        self,
        region: list[fx.Node],
        taken: list[fx.Node],
        g: list[Tensor | None],
        axes: Mapping[fx.Node, ExampleAxis | None],
    ) -> Operation | None:
        inputs = [self._nodes.values[node] for node in taken]
        leaves, gradients = self._nodes.derivative(region, taken, g)
        examples = [axes[node] for node in taken]
        own = [axis for axis in examples if axis is not None]
        if len(own) < len(examples):
            raise NotReplayed("something in it does not belong to one example each")
        operation = Operation(inputs, own, leaves, gradients)
        if not any(bool(u.any()) for u in operation.product(operation.trial(0))):
            return None
        if len(inputs) == 1:
            operation.diagonal = _own_diagonal(operation, 0)
        return operation

    def _axes(self, taken: list[fx.Node]) -> dict[fx.Node, ExampleAxis | None]:
        """Where what these nodes give holds its examples."""
        if not taken:
            return {}
        graph, values = self.graph, [self._nodes.values[node] for node in taken]
        shape = (-1, *[1] * (graph.output.dim() - 1))
        weights = mixture(graph.output_gradient.flatten(1)[:, 0])
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        plain = torch.autograd.grad(self.output, values, graph.output_gradient, **options)
        mixed = torch.autograd.grad(self.output, values, graph.output_gradient * weights.reshape(shape), **options)
        return {n: example_axis(p, m, p.dim(), weights) for n, p, m in zip(taken, plain, mixed, strict=True)}

    def _direct(self, operation: Operation, taken: list[fx.Node], tap_of: Mapping[int, int]) -> dict[int, Direct]:
        nodes, found = self._nodes, dict[int, Direct]()
        for tap, number in tap_of.items():
            touched = [i for i, node in enumerate(taken) if nodes.depends[node] >> tap & 1]
            rooted = [i for i in touched if nodes.root.get(taken[i], (None, None))[0] == tap]
            if not touched or rooted != touched or not self._apart(number, [nodes.root[taken[i]][1] for i in touched]):
                continue
            curvatures = {i: _own_diagonal(operation, i) for i in touched}
            if all(c is not None for c in curvatures.values()):
                found |= {i: Direct(number, nodes.root[taken[i]][1], c) for i, c in curvatures.items() if c is not None}
        return found

    def _apart(self, number: int, places: list[Tensor]) -> bool:
        """Whether these entries of a tap belong to different units, so to different entries of parameters."""
        if len(places) == 1:
            return True
        eps = self.graph.taps[number].eps
        axis = self.graph.taps[number].unit_axis % eps.dim()
        behind = eps.shape[axis + 1 :].numel()
        units = torch.cat([torch.unique(p.flatten() // behind % eps.shape[axis]) for p in places])
        return len(torch.unique(units)) == len(units)


def _bends(gradient: Tensor | None) -> bool:
    return gradient is not None and gradient.requires_grad


def _own_diagonal(operation: Operation, i: int) -> Tensor | None:
    """The second derivative by one input if that is diagonal, found out by trying."""

    def along(v: Tensor) -> Tensor:
        return operation.product([v if k == i else None for k in range(len(operation.inputs))])[i]

    diagonal = along(torch.ones_like(operation.leaves[i]))
    trials = [operation.trial(k)[i] for k in (0, 1)]
    return diagonal if all(close(diagonal * v, along(v)) for v in trials) else None


class _Nodes:
    """A recorded graph with its values.

    Attributes:
        values: By node.
        depends: By node, the bits of the taps that it depends on.
        root: By node, the tap that it is entries of, and their places there.
        output: The node of the output.
    """

    def __init__(self, recorded: fx.Graph, epses: Sequence[Tensor]):
        self._order = list(recorded.nodes)
        self.values: dict[fx.Node, Any] = {}
        self.depends: dict[fx.Node, int] = {}
        self.root: dict[fx.Node, tuple[int, Tensor]] = {}
        self._work: dict[fx.Node, float] = {}
        self._tap: dict[fx.Node, int] = {}
        for node in self._order:
            if node.op == "placeholder":
                self._tap[node] = number = len(self._tap)
                self.values[node], self.depends[node] = epses[number], 1 << number
            elif node.op == "get_attr":
                self.values[node], self.depends[node] = node.meta["constant"], 0
            elif node.op == "output":
                self.output = node.args[0][0]
            else:
                self._run(node)

    def _run(self, node: fx.Node) -> None:
        value = self.values[node] = _run(node, self.values.__getitem__)
        self.depends[node] = 0
        for other in node.all_input_nodes:
            self.depends[node] |= self.depends[other]
        self._work[node] = _work(node, value, self.values)
        taps = [self._tap[other] for other in node.all_input_nodes if other in self._tap]
        first = node.args[0] if node.args else None
        if taps and node.target is aten.add.Tensor:
            self.root[node] = taps[0], torch.arange(value.numel(), device=value.device).reshape(value.shape)
        elif node.target in REARRANGEMENTS and isinstance(first, fx.Node) and first in self.root:
            tap, places = self.root[first]
            self.root[node] = tap, _run(node, lambda other: places if other is first else self.values[other])

    def bending(self, output: Tensor, along: Tensor) -> dict[fx.Node, list[Tensor | None]]:
        """The nodes that may have a second derivative, and the gradient at what each gives."""
        given = {
            node: _listed(self.values[node])
            for node in self._order
            if node.op == "call_function" and self.depends[node] and node.target not in REARRANGEMENTS
        }
        flat = [t for parts in given.values() for t in parts if t.requires_grad]
        found = torch.autograd.grad(output, flat, along, retain_graph=True, allow_unused=True) if flat else ()
        table = {id(t): g for t, g in zip(flat, found, strict=True)}
        every = {node: [table.get(id(t)) for t in parts] for node, parts in given.items()}
        return {
            node: g
            for node, g in every.items()
            if any(one is not None for one in g) and any(map(_bends, self.derivative([node], self.taken([node]), g)[1]))
        }

    def derivative(
        self, region: list[fx.Node], taken: list[fx.Node], g: list[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """New leaves for what a region takes, and the derivatives of <g, what it gives> by them, in a graph."""
        leaves = [self.values[node].detach().requires_grad_() for node in taken]
        outputs = self._run_region(region, dict(zip(taken, leaves, strict=True)))
        pairs = [(o, one) for o, one in zip(outputs, g, strict=True) if one is not None and o.requires_grad]
        if not pairs:
            return leaves, [None] * len(leaves)
        along = [one for _, one in pairs]
        return leaves, list(
            torch.autograd.grad([o for o, _ in pairs], leaves, along, create_graph=True, allow_unused=True)
        )

    def regions(self, bending: Iterable[fx.Node]) -> list[list[fx.Node]]:
        """The bending nodes with what lies between, those together that hand on to a single other and to no tap."""
        chosen = set(bending)
        stops: dict[fx.Node, set[fx.Node | None]] = {}
        into: dict[fx.Node, fx.Node] = {}
        for node in reversed(self._order):
            if node.op != "call_function" or not self.depends[node]:
                continue
            after: set[fx.Node | None] = {None} if node is self.output else set()
            for user in node.users:
                at_tap = user.op != "call_function" or any(other in self._tap for other in user.all_input_nodes)
                after |= {None} if at_tap else {user} if user in chosen else stops.get(user, set())
            stops[node] = after
            if node in chosen and len(after) == 1 and None not in after:
                (other,) = after
                assert other is not None
                into[node] = into.get(other, other)
        members: dict[fx.Node, set[fx.Node]] = {}
        for node in chosen:
            members.setdefault(into.get(node, node), set()).add(node)
        return [self._between(members[end], end) for end in self._order if end in members]

    def _between(self, members: set[fx.Node], end: fx.Node) -> list[fx.Node]:
        after: set[fx.Node] = set()
        for node in self._order:
            if node in members or any(other in after for other in node.all_input_nodes):
                after.add(node)
        before, waiting = set[fx.Node](), [end]
        while waiting:
            node = waiting.pop()
            if node in after and node not in before:
                before.add(node)
                waiting += node.all_input_nodes
        return [node for node in self._order if node in before]

    def taken(self, region: Sequence[fx.Node]) -> list[fx.Node]:
        """What a region takes from outside that depends on taps."""
        inside = set(region)
        outside = (other for node in region for other in node.all_input_nodes if other not in inside)
        return [
            other for other in dict.fromkeys(outside) if self.depends[other] and _differentiable(self.values[other])
        ]

    def _run_region(self, region: Sequence[fx.Node], given: Mapping[fx.Node, Tensor]) -> list[Tensor]:
        values: dict[fx.Node, Any] = dict(given)
        for node in region:
            values[node] = _run(node, lambda other: values[other] if other in values else self.values[other])
        return _listed(values[region[-1]])

    def work(self, factor: float) -> float:
        """The work with the size of everything multiplied."""
        return sum(OVERHEAD + (w - OVERHEAD) * factor for w in self._work.values())

    def share(self, taps: int) -> float:
        """Which share of the work depends on some of the taps given by bits."""
        whole = sum(self._work.values())
        return sum(w for node, w in self._work.items() if self.depends[node] & taps) / whole if whole else 0.0


def _run(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> Any:
    args, kwargs = fx.map_arg((node.args, node.kwargs), value_of)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _listed(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for t in value if isinstance(t, Tensor)]


def _differentiable(value: Any) -> bool:
    return any(t.requires_grad for t in _listed(value)) if isinstance(value, (Tensor, list, tuple)) else False


OVERHEAD = 2e5
"""Work of an operation whatever its size, in multiplications."""
PASS = 16
"""Work of writing one number, in multiplications."""
CONTRACTIONS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}
"""Matrix products."""


def _work(node: fx.Node, value: Any, values: Mapping[fx.Node, Any]) -> float:
    """Roughly what a node costs, in multiplications."""
    if node.target in REARRANGEMENTS:
        return OVERHEAD
    size = sum(t.numel() for t in _listed(value))
    operands = [values[other] for other in node.all_input_nodes if isinstance(values[other], Tensor)]
    if node.target in CONTRACTIONS:
        return OVERHEAD + size * operands[-1].shape[-2]
    if node.target is aten.convolution.default:
        return OVERHEAD + size * operands[1][0].numel()
    return OVERHEAD + PASS * size
