"""Rewriting a recorded linear function so that a run of it does nothing that could be done once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from geomtraj.errors import ComputationError
from geomtraj.memory import storage_bytes
from geomtraj.operators.hvp.recording import Like, aten

Coefficient = float | Tensor
Term = tuple[Coefficient, fx.Node]

RESHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default}
PERMUTATIONS = {aten.t.default, aten.transpose.int, aten.permute.default, aten.unsqueeze.default}
# Linear in the first argument, entry by entry, with the others fixed.
ENTRYWISE = {
    aten.threshold_backward.default, aten.gelu_backward.default, aten.tanh_backward.default,
    aten.sigmoid_backward.default, aten.silu_backward.default, aten.elu_backward.default,
    aten.leaky_relu_backward.default, aten.hardtanh_backward.default, aten.softplus_backward.default,
}  # fmt: skip
MOST_TERMS_MOVED = 3


def simplify(recorded: fx.Graph) -> fx.GraphModule:
    """The same linear function of fewer passes over memory, from a graph that `record` made.

    Sums and entrywise products with constants are collected, across reshapes too, into sum_i c_i * x_i with the
    constants multiplied out beforehand: the derivatives of an activation or a norm, a dozen operations each, become
    one multiplication, and a fused multiply-add for every further term. Other operations stand as they were recorded.

    Raises:
        ComputationError: The graph multiplies or shifts what depends on the inputs, so it is not linear.
    """
    return _Simplifier(recorded).module()


def held_bytes(module: fx.GraphModule) -> int:
    """Bytes of the constants in a simplified graph, each storage counted once."""
    return storage_bytes(tensor for tensor in module._buffers.values() if tensor is not None)


LONGEST = 32
"""Terms that a sum collects at most: a sum over thousands of parameters would be gone through anew at each of them."""


class _Simplifier:
    def __init__(self, recorded: fx.Graph):
        self._graph = fx.Graph()
        self._terms: dict[fx.Node, list[Term]] = {}  # of each recorded node, over nodes of the new graph
        self._ready: dict[fx.Node, fx.Node] = {}  # recorded nodes whose sum stands in the new graph
        self._names: dict[int, str] = {}
        self._constants: dict[str, Tensor] = {}
        for node in recorded.nodes:
            if node.op == "placeholder":
                self._take(node, self._graph.placeholder(node.name))
            elif node.op == "output":
                self._graph.output(tuple(self._value(result) for result in node.args[0]))
            elif node.op == "call_function":
                self._visit(node)
        self._graph.eliminate_dead_code()

    def module(self) -> fx.GraphModule:
        holder = torch.nn.Module()
        for name in {node.target for node in self._graph.nodes if node.op == "get_attr"}:
            holder.register_buffer(name, self._constants[name])
        return fx.GraphModule(holder, self._graph)

    def _visit(self, node: Any) -> None:
        terms = self._linear(node)
        if terms is None:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
            target = aten.reshape.default if node.target in RESHAPES else node.target
            self._take(node, self._graph.call_function(target, args, kwargs))
            return
        merged: dict[fx.Node, Coefficient] = {}
        for coefficient, atom in terms:
            merged[atom] = merged[atom] + coefficient if atom in merged else coefficient
        self._terms[node] = [(coefficient, atom) for atom, coefficient in merged.items()]
        if len(merged) > LONGEST or (len(merged) > 1 and len(node.users) > 1):
            self._terms[node] = [(1.0, self._value(node))]

    def _take(self, recorded: fx.Node, new: fx.Node) -> None:
        if "like" in recorded.meta:
            new.meta["like"] = recorded.meta["like"]
        self._terms[recorded] = [(1.0, new)]
        self._ready[recorded] = new

    def _value(self, node: fx.Node) -> fx.Node:
        """The node of the new graph that holds what `node` holds."""
        if "constant" in node.meta:
            return self._constant(node.meta["constant"])
        if node not in self._ready:
            self._ready[node] = self._sum(self._terms[node], node.meta["like"])
        return self._ready[node]

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = self._names.setdefault(id(tensor), f"c{len(self._names)}")
        self._constants[name] = tensor
        return self._graph.create_node("get_attr", name)

    def _sum(self, terms: list[Term], like: Like) -> fx.Node:
        """The sum of the terms, written into as few new tensors as possible."""
        call = self._graph.call_function
        ordered = sorted(terms, key=lambda term: (_span(*term) != like.shape, isinstance(term[0], Tensor)))
        coefficient, total = ordered[0]
        span, fresh = _span(coefficient, total), False
        if not _is_one(coefficient):
            total, fresh = call(aten.mul.Tensor, (total, self._operand(coefficient))), True
        for coefficient, atom in ordered[1:]:
            inside = fresh and span == like.shape
            span, fresh = torch.broadcast_shapes(span, _span(coefficient, atom)), True
            if isinstance(coefficient, Tensor):
                fused = aten.addcmul_.default if inside else aten.addcmul.default
                total = call(fused, (total, atom, self._operand(coefficient)))
            else:
                plain = aten.add_.Tensor if inside else aten.add.Tensor
                total = call(plain, (total, atom), {} if coefficient == 1.0 else {"alpha": coefficient})
        if span != like.shape:
            total = call(aten.expand.default, (total, list(like.shape)))
        total.meta["like"] = like
        return total

    def _operand(self, coefficient: Coefficient) -> fx.Node | float:
        return self._constant(coefficient) if isinstance(coefficient, Tensor) else coefficient

    def _linear(self, node: Any) -> list[Term] | None:
        """The node as a sum of constants times values, or None where it is no such sum."""
        rule = RULES.get(node.target)
        if rule is None or "like" not in node.meta:
            return None
        return rule(self, node)

    def _known(self, operand: Any) -> Any:
        """A constant operand's value."""
        return operand.meta["constant"] if isinstance(operand, fx.Node) else operand

    def _times(self, node: Any, factor: Any, constant: Any) -> list[Term] | None:
        like = node.meta["like"]
        if isinstance(constant, Tensor):
            if constant.dim() == 0:
                constant = constant.to(like.device, like.dtype)
            if constant.dtype != like.dtype:
                return None
        elif isinstance(constant, complex):
            return None
        if factor.meta["like"].dtype != like.dtype:
            return None
        scaled: list[Term] = [(coefficient * constant, atom) for coefficient, atom in self._terms[factor]]
        if any(isinstance(c, Tensor) and not bool(torch.isfinite(c.sum())) for c, _ in scaled):
            return None
        return scaled

    def _product(self, node: Any) -> list[Term] | None:
        a, b = node.args[:2]
        if _varies(a) and _varies(b):
            raise ComputationError("the recorded derivatives multiply two varying tensors: they are not linear.")
        return self._times(node, a, self._known(b)) if _varies(a) else self._times(node, b, self._known(a))

    def _quotient(self, node: Any) -> list[Term] | None:
        if len(node.args) != 2 or node.kwargs or _varies(node.args[1]):
            return None
        return self._times(node, node.args[0], 1 / self._known(node.args[1]))

    def _negative(self, node: Any) -> list[Term] | None:
        return self._times(node, node.args[0], -1.0)

    def _addition(self, node: Any) -> list[Term] | None:
        terms: list[Term] = []
        sign = 1.0 if node.target is aten.add.Tensor else -1.0
        for operand, factor in ((node.args[0], 1.0), (node.args[1], sign * node.kwargs.get("alpha", 1))):
            if not _varies(operand):
                if not _is_zero(self._known(operand)):
                    raise ComputationError("the recorded derivatives add a constant: they are not linear.")
                continue
            if operand.meta["like"].dtype != node.meta["like"].dtype:
                return None
            inner = [(1.0, self._ready[operand])] if operand in self._ready else self._terms[operand]
            terms += [(coefficient * factor if factor != 1.0 else coefficient, atom) for coefficient, atom in inner]
        return terms

    def _entrywise(self, node: Any) -> list[Term] | None:
        factor, *rest = node.args
        if not _varies(factor) or any(map(_varies, rest)):
            return None
        like = factor.meta["like"]
        ones = torch.ones(like.shape, dtype=like.dtype, device=like.device)
        with torch.no_grad():
            return self._times(node, factor, node.target(ones, *map(self._known, rest), **node.kwargs))

    def _selection(self, node: Any) -> list[Term] | None:
        mask, yes, no = node.args
        if _varies(mask) or _varies(yes) == _varies(no):
            return None
        kept, other = (yes, no) if _varies(yes) else (no, yes)
        if not _is_zero(self._known(other)):
            return None
        chosen = self._known(mask) if kept is yes else ~self._known(mask)
        return self._times(node, kept, chosen.to(node.meta["like"].dtype))

    def _same(self, node: Any) -> list[Term] | None:
        source, like = node.args[0], node.meta["like"]
        if source.meta["like"].dtype != like.dtype or source.meta["like"].device != like.device:
            return None
        return list(self._terms[source])

    def _broadcast(self, node: Any) -> list[Term] | None:
        source = node.args[0]
        same_rank = len(source.meta["like"].shape) == len(node.meta["like"].shape)
        return list(self._terms[source]) if same_rank else None

    def _moved(self, node: Any) -> list[Term] | None:
        source = node.args[0]
        shape, terms = source.meta["like"].shape, self._terms[source]
        whole = all(
            atom.meta["like"].shape == shape and (not isinstance(c, Tensor) or c.dim() == 0 or c.shape == shape)
            for c, atom in terms
        )
        if source in self._ready or not whole or len(terms) > MOST_TERMS_MOVED:
            return None
        move: Any = aten.reshape.default if node.target in RESHAPES else node.target
        moved: list[Term] = []
        for coefficient, atom in terms:
            new = self._graph.call_function(move, (atom, *node.args[1:]))
            new.meta["like"] = node.meta["like"]
            many = isinstance(coefficient, Tensor) and coefficient.dim() > 0
            moved.append((move(coefficient, *node.args[1:]) if many else coefficient, new))
        return moved


Rule = Callable[[_Simplifier, Any], "list[Term] | None"]
RULES: dict[Any, Rule] = {
    aten.mul.Tensor: _Simplifier._product,
    aten.mul.Scalar: _Simplifier._product,
    aten.div.Tensor: _Simplifier._quotient,
    aten.div.Scalar: _Simplifier._quotient,
    aten.neg.default: _Simplifier._negative,
    aten.add.Tensor: _Simplifier._addition,
    aten.sub.Tensor: _Simplifier._addition,
    aten.where.self: _Simplifier._selection,
    aten._to_copy.default: _Simplifier._same,
    aten.expand.default: _Simplifier._broadcast,
    **dict.fromkeys(ENTRYWISE, _Simplifier._entrywise),
    **dict.fromkeys(RESHAPES | PERMUTATIONS, _Simplifier._moved),
}


def _varies(operand: Any) -> bool:
    return isinstance(operand, fx.Node) and "constant" not in operand.meta


def _is_zero(constant: Any) -> bool:
    return not bool(constant.any()) if isinstance(constant, Tensor) else constant == 0


def _is_one(coefficient: Coefficient) -> bool:
    return not isinstance(coefficient, Tensor) and coefficient == 1.0


def _span(coefficient: Coefficient, atom: fx.Node) -> tuple[int, ...]:
    """The shape of coefficient * atom."""
    other = coefficient.shape if isinstance(coefficient, Tensor) else ()
    return tuple(torch.broadcast_shapes(atom.meta["like"].shape, other))


def out_of_place(module: fx.GraphModule) -> fx.GraphModule:
    """The same function without the in-place operation that `torch.func.vmap` cannot batch."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    for node in graph.nodes:
        if node.target is aten.addcmul_.default:
            node.target = aten.addcmul.default
    return fx.GraphModule(module, graph)
