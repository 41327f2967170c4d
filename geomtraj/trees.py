"""Walking through nested values: what a batch or a model's output is made of."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Change = Callable[[Any], Any]

_OPAQUE = (
    type,
    nn.Module,
    torch.Generator,
    functools.partial,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
)


def tensors_of(item: Any) -> Iterator[Tensor]:
    """The tensors in a value of any nesting, in order."""
    return (leaf for _, leaf in leaves_of(item) if isinstance(leaf, Tensor))


def arrays_of(item: Any) -> Iterator[Tensor | np.ndarray]:
    """The tensors and NumPy arrays in a value of any nesting, in order."""
    return (leaf for _, leaf in leaves_of(item) if isinstance(leaf, (Tensor, np.ndarray)))


def leaves_of(item: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of whatever is not a mapping, list, tuple, dataclass or object with fields, in order.

    What occurs in several places is gone through at the first.
    """
    waiting, seen = [("", item)], set[int]()
    while waiting:
        path, value = waiting.pop()
        inner = None if id(value) in seen else _inner(value)
        if inner is None:
            yield path, value
            continue
        seen.add(id(value))
        waiting += [(f"{path}/{key}", part) for key, part in reversed(inner)]


def rebuilt(item: Any, change: Change, kinds: tuple[type, ...] = (Tensor,)) -> Any:
    """The same nesting with other leaves of these kinds, which are asked for in the order of `leaves_of`."""
    return _rebuilt(item, change, kinds, {})


def _inner(item: Any) -> list[tuple[str, Any]] | None:
    """What a value consists of, or None for a leaf."""
    if isinstance(item, Mapping):
        return [(str(key), value) for key, value in item.items()]
    if isinstance(item, (list, tuple, deque)):
        return [(str(i), value) for i, value in enumerate(item)]
    fields = _fields(item)
    return None if fields is None else list(fields.items())


def _fields(item: Any) -> dict[str, Any] | None:
    """The fields of a dataclass or plain object, or None for a value without any."""
    if isinstance(item, (Tensor, np.ndarray, np.generic, *_OPAQUE)):
        return None
    found = dict(getattr(item, "__dict__", {}))
    slots = [
        f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
        for cls in type(item).__mro__
        for name in _names(cls.__dict__.get("__slots__", ()))
    ]
    found |= {
        name: getattr(item, name) for name in slots if name not in ("__dict__", "__weakref__") and hasattr(item, name)
    }
    return found or ({} if dataclasses.is_dataclass(item) else None)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _rebuilt(item: Any, change: Change, kinds: tuple[type, ...], done: dict[int, Any]) -> Any:
    if id(item) in done:
        return done[id(item)]
    if isinstance(item, kinds):
        done[id(item)] = change(item)
        return done[id(item)]

    def again(value: Any) -> Any:
        return _rebuilt(value, change, kinds, done)

    if isinstance(item, dict):
        made = done[id(item)] = _fresh(item)
        for key, value in item.items():
            made[key] = again(value)
        if getattr(made, "__dict__", made) is not made:
            vars(made).update({name: again(value) for name, value in vars(item).items()})
        return made
    if isinstance(item, (list, deque)):
        made = done[id(item)] = _fresh(item)
        made.clear()
        made.extend(again(value) for value in item)
        return made
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return type(item)(*(again(value) for value in item))
    if isinstance(item, tuple):
        return type(item)(again(value) for value in item)
    fields = _fields(item)
    if not fields:
        return {key: again(value) for key, value in item.items()} if isinstance(item, Mapping) else item
    done[id(item)] = item  # a field may lead back here
    changed = {name: new for name, value in fields.items() if (new := again(value)) is not value}
    if not changed:
        return item
    made = done[id(item)] = _fresh(item)
    for name, value in changed.items():
        object.__setattr__(made, name, value)
    return made


def _fresh(item: Any) -> Any:
    """A shallow copy that is another object, whatever the item's own idea of a copy is."""
    made = copy.copy(item)
    if made is item:
        made = object.__new__(type(item))
        made.__dict__.update(item.__dict__)
    return made


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """Dense tensors that hold a tensor's content, whatever its layout: indices and values of a sparse one."""
    tensor = tensor.detach()
    if tensor.is_quantized:
        return [tensor.int_repr()]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if tensor.is_nested:
        return [part for piece in tensor.unbind() for part in plain_parts(piece)]
    return [tensor]


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one, which can be sliced."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of any layout have the same content, NaN equal to NaN."""
    one, other = plain_parts(a), plain_parts(b)
    return len(one) == len(other) and all(map(_same_bits, one, other))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()))


def digest_of(item: Any) -> str:
    """A hash of all that a value of any nesting holds; objects without fields count by their kind."""
    sha = hashlib.sha256()
    for path, leaf in leaves_of(item):
        sha.update(path.encode())
        if isinstance(leaf, Tensor):
            for part in plain_parts(leaf):
                sha.update(f"{part.dtype}{tuple(part.shape)}".encode())
                sha.update(_bytes(part.resolve_conj().resolve_neg().cpu().contiguous()))
        elif isinstance(leaf, np.ndarray):
            sha.update(f"{leaf.dtype}{leaf.shape}".encode())
            sha.update(repr(leaf.tolist()).encode() if leaf.dtype.hasobject else np.ascontiguousarray(leaf).tobytes())
        elif isinstance(leaf, (str, int, float, complex, bool, bytes, type(None), np.generic)):
            sha.update(repr(leaf).encode())
        else:
            sha.update(type(leaf).__qualname__.encode())
    return sha.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    if not tensor.numel():
        return b""
    return tensor.flatten().view(torch.uint8).numpy().tobytes()
