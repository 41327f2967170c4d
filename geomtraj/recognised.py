"""What a model's modules tell of its parameters: which are fused query-key-value matrices, which are embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from geomtraj.blocks import Kind
from geomtraj.layout import Layout
from geomtraj.splitting import Split

FUSED = {"qkv", "wqkv", "toqkv", "cattn", "inproj"}
"""Names under which query, key and value share one matrix, in lower case and without underscores."""
WRAPPERS = {"_orig_mod", "base_layer", "module"}
"""Names of modules that only wrap another."""
OUTPUTS = {"out", "outproj", "toout", "proj", "oproj", "cproj", "wo", "dense", "projection", "output"}
"""Names of the linear map that follows attention and takes as many inputs as there are values."""
HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
SHARED_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads", "kv_n_heads", "n_query_groups")
"""Attributes that tell the number of heads, and how many of them keys and values have."""
ADDED = ("pos_emb", "position_emb", "posemb", "pos_enc", "embedding", "_token", "wpe", "wte")
"""What names of parameters that are added to embeddings, or put before them, contain or end with."""


class Owner(NamedTuple):
    """A parameter, and the module that it is an attribute of."""

    name: str
    attribute: str
    module: nn.Module
    path: tuple[str, ...]
    parameter: Tensor


def owners(model: nn.Module) -> Iterator[Owner]:
    """Each place in which a parameter stands, tied ones in each of theirs."""
    for path, module in model.named_modules(remove_duplicate=False):
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                name = f"{path}.{attribute}" if path else attribute
                own = tuple(part for part in path.split(".") if part and part not in WRAPPERS)
                yield Owner(name, attribute, module, own, parameter)


def kinds(model: nn.Module, layout: Layout) -> dict[str, Kind]:
    """The parameters of two axes or more that are embeddings: tables, and positions or tokens that are learnt."""
    found: dict[str, Kind] = {}
    for owner in owners(model):
        name = layout.aliases.get(owner.name, owner.name)
        table = isinstance(owner.module, (nn.Embedding, nn.EmbeddingBag))
        if name in layout and owner.parameter.dim() > 1 and (table or _added(owner.attribute)):
            found[name] = "embedding"
    return found


def _added(attribute: str) -> bool:
    return any(part in attribute.lower() for part in ADDED)


def fused(model: nn.Module, layout: Layout) -> dict[str, Split]:
    """The splits of those parameters that are fused query-key-value matrices, and of their biases.

    By name, and where the shape is that of three equal parts: three times as many outputs as inputs, or as the linear
    map behind the attention takes. With fewer keys and values than queries (grouped-query attention) it is not.
    """
    found: dict[str, Split] = {}
    for owner in owners(model):
        dim = _fused_axis(model, owner)
        name = layout.aliases.get(owner.name, owner.name)
        if dim is not None and name in layout:
            found.setdefault(name, Split(dim, ("q", "k", "v"), None, 1))
    return found


def _fused_axis(model: nn.Module, owner: Owner) -> int | None:
    """The axis of three equal parts."""
    raw = owner.attribute not in ("weight", "bias")
    label = owner.attribute.removesuffix("_weight").removesuffix("_bias") if raw else (owner.path or ("",))[-1]
    label = label.lower().replace("_", "")
    if label not in FUSED or (label == "inproj" and not raw):
        return None
    if isinstance(owner.module, nn.MultiheadAttention):
        return 0
    weight = _companion(owner)
    if weight is None or weight.dim() < 2:
        return None
    if raw and weight.dim() > 2 and weight.shape[0] == 3 == owner.parameter.shape[0]:
        return 0
    axis = _output_axis(owner.module, weight)
    part, rest = divmod(weight.shape[axis], 3)
    inputs = weight.shape[1 - axis]
    if rest or not part or not _equal_parts(owner, model, part, inputs):
        return None
    if owner.parameter is weight:
        return axis
    return 0 if owner.parameter.shape == (3 * part,) else None


def _companion(owner: Owner) -> Tensor | None:
    """The weight that belongs to a bias; the weight itself if it is one."""
    attribute = owner.attribute
    if attribute.endswith("bias"):
        attribute = attribute.removesuffix("bias") + "weight"
    own = owner.module._parameters.get(attribute)
    return owner.parameter if own is None and owner.parameter.dim() > 1 else own


def _output_axis(module: nn.Module, weight: Tensor) -> int:
    """The axis of a weight's outputs: the first, and the last in Hugging Face's Conv1D."""
    bias = module._parameters.get("bias")
    if isinstance(module, nn.Linear) or weight.dim() > 2:
        return 0
    if type(module).__name__ == "Conv1D" or (bias is not None and tuple(bias.shape) == (weight.shape[1],)):
        return 1
    return 0 if weight.shape[0] >= weight.shape[1] else 1


def _equal_parts(owner: Owner, model: nn.Module, part: int, inputs: int) -> bool:
    """Whether keys and values are as many as queries: told by the map behind them, else by the number of inputs."""
    around = _around(owner, model)
    heads, shared = (_told(around, names) for names in (HEADS, SHARED_HEADS))
    if heads is not None and shared is not None and heads != shared:
        return False
    behind = [
        weight.shape[1 - axis]
        for name, child in around.named_children()
        if name.lower().replace("_", "") in OUTPUTS
        for weight in [next((p for p in child.parameters() if p.dim() > 1), None)]
        if weight is not None
        for axis in [_output_axis(child, weight)]
        if weight.shape[axis] == inputs
    ]
    return part in behind if behind else part == inputs


def _around(owner: Owner, model: nn.Module) -> nn.Module:
    """The module of the attention that a fused matrix is part of."""
    path = owner.name.split(".")[:-1]
    while path and path[-1] in WRAPPERS:
        path.pop()
    if owner.attribute in ("weight", "bias"):
        path = path[:-1]
    return model.get_submodule(".".join(path))


def _told(module: nn.Module, names: tuple[str, ...]) -> int | None:
    """The first of these attributes of a module that is a number."""
    values = (getattr(module, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)
