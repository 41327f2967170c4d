"""Recording the operations through which a linear function's result depends on its arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from geomtraj.errors import ComputationError

aten = torch.ops.aten
# What they return does not depend on the values of their arguments.
QUERIES = {
    aten.zeros_like.default, aten.ones_like.default, aten.empty_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_empty.default,
    aten.is_same_size.default, aten._has_same_storage_numel.default,
}  # fmt: skip
# Their results may be written into as if each had a memory of its own.
UNSAFE_SPLITS = {aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default}
IN_PLACE_VIEWS = {
    aten.transpose_.default: aten.transpose.int,
    aten.t_.default: aten.t.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.unsqueeze_.default: aten.unsqueeze.default,
}
ALIASES = {aten.detach.default, aten.alias.default}


class Like(NamedTuple):
    """What is known of a recorded value."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def record(
    function: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor], *, cut_at_detach: bool = False
) -> fx.Graph:
    """The graph of what `function` does to its inputs; whatever it does without them becomes a constant.

    Each placeholder stands for one input, in order; the output is a tuple. A constant is a `get_attr` node with the
    tensor in `meta["constant"]`; `meta["like"]` of the other nodes says what they hold.

    Args:
        function: What is recorded.
        inputs: Its arguments.
        cut_at_detach: Whether what was detached is a constant, as in derivatives; else it is what it was detached from.

    Raises:
        ComputationError: The function branches on its inputs' values, or changes a tensor that others look into.
    """
    recorder = _Recorder(inputs, cut_at_detach)
    with recorder:
        outputs = function(inputs)
    return recorder.finish(outputs)


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor], cut_at_detach: bool):
        super().__init__()
        self._untouched = QUERIES | {aten.detach.default} if cut_at_detach else QUERIES
        self._graph = fx.Graph()
        self._constants: dict[int, fx.Node] = {}
        self._nodes = WeakTensorKeyDictionary()
        self._apart = WeakTensorKeyDictionary()
        for i, tensor in enumerate(inputs):
            self._bind(tensor, self._graph.placeholder(f"v{i}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True would import torch's compiler, which takes two seconds

    def finish(self, outputs: Sequence[Tensor]) -> fx.Graph:
        self._graph.output(tuple(self._node(tensor) for tensor in outputs))
        self._graph.eliminate_dead_code()
        return self._graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._untouched or not (self._varies(args) or self._varies(kwargs.values())):
            return func(*args, **kwargs)
        changed: Any = args[0] if func._schema.is_mutable else None
        target = func if changed is None else self._functional(func, changed)
        new_args = [self._recorded(a, changed) for a in args]
        new_kwargs = {key: self._recorded(a, changed) for key, a in kwargs.items()}
        out = func(*args, **kwargs)
        if func in ALIASES:
            self._nodes[out] = self._nodes[args[0]]
            return out
        results = [out] if isinstance(out, Tensor) else list(out) if isinstance(out, (tuple, list)) else []
        if not results:
            if func is aten._local_scalar_dense.default:
                raise ComputationError("the model's derivatives branch on numbers (.item()): they cannot be recorded.")
            return out
        if target is aten.copy.default and args[1].dtype == changed.dtype:
            target, new_args = aten.expand.default, [new_args[1], list(changed.shape)]
        node = self._graph.call_function(target, tuple(new_args), new_kwargs)
        if isinstance(out, Tensor):
            self._bind(out, node)
        else:
            for i, part in enumerate(results):
                if isinstance(part, Tensor):
                    self._bind(part, self._graph.call_function(operator.getitem, (node, i)))
                    if func in UNSAFE_SPLITS:
                        self._apart[part] = True
        return out

    def _varies(self, operands: Iterable[Any]) -> bool:
        return any(
            a in self._nodes if isinstance(a, Tensor) else isinstance(a, (list, tuple)) and self._varies(a)
            for a in operands
        )

    def _recorded(self, operand: Any, changed: Any) -> Any:
        if isinstance(operand, (list, tuple)):
            return [self._recorded(a, changed) for a in operand]
        if not isinstance(operand, Tensor):
            return operand
        if operand is changed and operand not in self._nodes:
            operand = operand.clone()  # what it held before
        return self._node(operand)

    def _functional(self, func: Any, changed: Any) -> Any:
        """The variant of an in-place operation that returns a new tensor instead."""
        if func in IN_PLACE_VIEWS:
            return IN_PLACE_VIEWS[func]
        space, name = func._schema.name.split("::")
        home = changed.untyped_storage().data_ptr() if isinstance(changed, Tensor) else 0
        shared = changed not in self._apart and any(
            t is not changed and t.untyped_storage().data_ptr() == home for t in self._nodes
        )
        plain = getattr(getattr(getattr(torch.ops, space), name[:-1], None), func._overloadname, None)
        if not name.endswith("_") or shared or plain is None:
            raise ComputationError(f"the derivatives write into a shared tensor ({name}): they cannot be recorded.")
        return plain

    def _bind(self, tensor: Tensor, node: fx.Node) -> None:
        node.meta["like"] = Like(tuple(tensor.shape), tensor.dtype, tensor.device)
        self._nodes[tensor] = node

    def _node(self, tensor: Tensor) -> fx.Node:
        if tensor in self._nodes:
            return self._nodes[tensor]
        if id(tensor) not in self._constants:
            node = self._graph.create_node("get_attr", f"c{len(self._constants)}")
            node.meta["constant"] = tensor.detach()
            node.meta["held"] = tensor  # so that its id stays its own
            self._constants[id(tensor)] = node
        return self._constants[id(tensor)]
