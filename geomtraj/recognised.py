"""What a model tells of its parameters: which look like fused query-key-value matrices, which are embeddings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from geomtraj.parameter_names import named_parameters

ORDERED = {"qkv", "wqkv", "toqkv", "cattn", "inproj"}
"""Names of a matrix of query, key and value, one after the other, in lower case and without underscores."""
UNORDERED = {"querykeyvalue", "qkvproj", "wqkvpacked", "qkvlinear"}
"""Such names that are also used where each head has its own query, key and value rows next to each other."""
WRAPPERS = {"_orig_mod", "base_layer", "module"}
"""Names of modules that only wrap another."""
BEHIND = {"out", "outproj", "toout", "proj", "oproj", "cproj", "wo", "dense", "projection", "output"}
"""Names of the linear map behind attention, which takes as many inputs as there are queries."""
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
SHARED_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "kv_n_heads", "n_query_groups")
"""Attributes that tell the number of heads, and how many of them keys and values have."""
ADDED = ("pos_emb", "position_emb", "posemb", "pos_enc", "embedding", "_token", "wpe", "wte")
"""What is in the names of parameters that are added to embeddings, or put before them."""


class Owner(NamedTuple):
    """A parameter, and the module that it is an attribute of."""

    name: str
    attribute: str
    module: nn.Module
    parameter: Tensor


@dataclass
class Fused:
    """Matrices that look like query, key and value in one, with their biases, in attention modules of one kind.

    Attributes:
        axes: The axis of the outputs by name of the parameter.
        outputs: Length of that axis.
        queries: Number of queries' outputs; there are as many keys as values.
        heads: Number of heads, where the module tells it.
        ordered: Whether the name is one under which queries come first, then keys, then values.
        known: Whether there is no doubt about it.
        apart: Biases that are parameters of their own, "q", "k" or "v" by name of the parameter.
    """

    axes: dict[str, int]
    outputs: int
    queries: int
    heads: int | None
    ordered: bool
    known: bool = False
    apart: dict[str, str] = field(default_factory=dict)

    @property
    def shared(self) -> int:
        """Number of keys' outputs, and of values'."""
        return (self.outputs - self.queries) // 2


def owners(model: nn.Module) -> Iterator[Owner]:
    """Each place in which a parameter stands, tied ones in each of theirs."""
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield Owner(f"{path}.{attribute}" if path else attribute, attribute, module, parameter)


def embeddings(model: nn.Module) -> set[str]:
    """Names of the parameters of embedding layers, and of those whose names tell that they are added to embeddings."""
    names = {id(p): name for name, p in named_parameters(model).items()}
    return {
        names[id(owner.parameter)]
        for owner in owners(model)
        if isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag))
        or any(part in owner.attribute.lower() for part in ADDED)
    }


def look_fused(model: nn.Module) -> list[Fused]:
    """The parameters that look like fused query-key-value matrices by name and shape, and their biases.

    There may be fewer keys and values than queries; how many queries there are is told by the map behind the
    attention, or by the number of inputs.
    """
    names = {id(p): name for name, p in named_parameters(model).items()}
    found: dict[tuple[object, ...], Fused] = {}
    seen: set[str] = set()
    for owner in owners(model):
        name = names[id(owner.parameter)]
        alike = None if name in seen else _fused(model, owner)
        if alike is None:
            continue
        seen.add(name)
        key, axis, fused = alike
        fused = found.setdefault(key, fused)
        fused.axes[name] = axis
        around = {f"{part}_bias": part for part in "qkv"}
        for attribute, p in _around(owner, model)._parameters.items():
            if p is not None and attribute in around:
                fused.apart[names[id(p)]] = around[attribute]
    return list(found.values())


def _fused(model: nn.Module, owner: Owner) -> tuple[tuple[object, ...], int, Fused] | None:
    path = [part for part in owner.name.split(".")[:-1] if part not in WRAPPERS]
    raw = owner.attribute not in ("weight", "bias")
    label = owner.attribute.removesuffix("_weight").removesuffix("_bias") if raw else (path or [""])[-1]
    label = label.lower().replace("_", "")
    if label not in ORDERED | UNORDERED or (label == "inproj" and not raw):
        return None
    if isinstance(owner.module, nn.MultiheadAttention):
        width = owner.module.embed_dim
        return (owner.module, width), 0, Fused({}, 3 * width, width, owner.module.num_heads, True, True)
    weight = _weight_of(owner)
    if weight is None or weight.dim() < 2:
        return None
    around = _around(owner, model)
    heads = _told(around, HEADS)
    if raw and weight.dim() > 2 and weight.shape[0] == 3 == owner.parameter.shape[0]:
        return (type(around), label, 3, 1), 0, Fused({}, 3, 1, heads, True)
    axis = _outputs(owner.module, weight)
    outputs, inputs = weight.shape[axis], weight.shape[1 - axis]
    queries = _queries(around, outputs, inputs)
    if not 0 < queries < outputs or (outputs - queries) % 2 or queries % ((outputs - queries) // 2):
        return None
    if owner.parameter is not weight:
        axis = 0
        if owner.parameter.shape != (outputs,):
            return None
    shared = _told(around, SHARED_HEADS)
    ordered = label in ORDERED and 3 * queries == outputs and (shared is None or heads is None or shared == heads)
    return (type(around), label, outputs, queries), axis, Fused({}, outputs, queries, heads, ordered)


def _weight_of(owner: Owner) -> Tensor | None:
    """The weight that belongs to a bias; the weight itself if it is one."""
    if owner.attribute.endswith("bias"):
        return owner.module._parameters.get(owner.attribute.removesuffix("bias") + "weight")
    return owner.parameter


def _outputs(module: nn.Module, weight: Tensor) -> int:
    """The axis of a weight's outputs: the first, and the second in Hugging Face's Conv1D."""
    bias = module._parameters.get("bias")
    if isinstance(module, nn.Linear) or weight.dim() > 2:
        return 0
    if type(module).__name__ == "Conv1D" or (bias is not None and bias.shape == weight.shape[1:]):
        return 1
    return 0 if weight.shape[0] >= weight.shape[1] else 1


def _queries(around: nn.Module, outputs: int, inputs: int) -> int:
    """How many of the outputs are queries; 0 if neither the map behind nor the inputs can tell."""
    behind = []
    for name, child in around.named_children():
        if name.lower().replace("_", "") in BEHIND:
            maps = ((m, p) for m in child.modules() for p in m._parameters.values() if p is not None and p.dim() > 1)
            for module, weight in itertools.islice(maps, 1):
                axis = _outputs(module, weight)
                behind += [weight.shape[1 - axis]] if weight.shape[axis] == inputs else []
    if behind:
        return behind[0] if behind[0] < outputs else 0
    return inputs if 3 * inputs == outputs else 0


def _around(owner: Owner, model: nn.Module) -> nn.Module:
    """The attention module that a fused matrix is part of."""
    path = owner.name.split(".")[:-1]
    while path and path[-1] in WRAPPERS:
        path.pop()
    return model.get_submodule(".".join(path[:-1] if owner.attribute in ("weight", "bias") else path))


def _told(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes of a module that is a number."""
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


LOOKUPS = ("EmbeddingBackward", "EmbeddingBagBackward", "IndexSelectBackward", "IndexBackward")


class Graph(NamedTuple):
    """What the graph of a loss tells: the parameters that rows are looked up in, whether there is a softmax."""

    tables: set[str]
    softmax: bool


def graph_of(value: Tensor, parameters: Mapping[str, Tensor]) -> Graph:
    """What the graph of a loss of these leaves tells; the softmax of a cross entropy does not count."""
    names = {id(p): name for name, p in parameters.items()}
    tables: set[str] = set()
    softmax = False
    waiting: list[Any] = [value.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        kind = type(node).__name__
        before = [function for function, _ in node.next_functions]
        softmax |= ("Softmax" in kind and "LogSoftmax" not in kind) or "DotProduct" in kind
        if kind.startswith(LOOKUPS):
            tables |= {names[id(v)] for f in before if id(v := getattr(f, "variable", None)) in names}
        waiting += before
    return Graph(tables, softmax)
