"""Nested Python values with tensors inside, as a JSON tree and a list of tensors; no pickle."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.trees import is_dense, plain_parts

SPARSE = {
    torch.sparse_coo: "coo",
    torch.sparse_csr: "csr",
    torch.sparse_csc: "csc",
    torch.sparse_bsr: "bsr",
    torch.sparse_bsc: "bsc",
}


def encode(value: Any, put: Callable[[Tensor, str], Any], path: str) -> Any:
    """The JSON tree of a value; its tensors go to `put` with readable paths.

    Args:
        value: None, bool, int, float, complex, str, tensors, NumPy arrays and scalars, and lists, tuples and
            dicts of them.
        put: Takes a tensor and its path, and gives back what stands for it in the tree, a JSON object.
        path: Path of this value ("optimizer/state/0/exp_avg").

    Raises:
        InputError: A value of another type; the message names its path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return _tensor(value, put, path)
    if isinstance(value, dict):
        return _mapping(value, put, path)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, numbers.Complex):
        return {"complex": [encode(value.real, put, path), encode(value.imag, put, path)]}
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"ndarray": put(torch.as_tensor(value, device="cpu"), path)}
    if isinstance(value, (list, tuple)):
        items = [encode(item, put, f"{path}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        return _mapping(value, put, path)
    raise InputError(
        f"{path} holds a {type(value).__name__}, which cannot be stored: keep tensors, numbers, strings, "
        "lists and dicts there."
    )


def _tensor(value: Tensor, put: Callable[[Tensor, str], Any], path: str) -> Any:
    if value.layout in SPARSE:
        parts = [put(part, f"{path}/{i}") for i, part in enumerate(plain_parts(value))]
        return {"sparse": [SPARSE[value.layout], list(value.shape), parts]}
    if not is_dense(value):
        raise InputError(f"{path} is a nested or quantized tensor, which cannot be stored: make it dense.")
    return put(value, path)


def _mapping(value: Mapping[Any, Any], put: Callable[[Tensor, str], Any], path: str) -> dict[str, Any]:
    pairs = []
    for key, item in value.items():
        if not isinstance(key, (str, int, float, bool, tuple, type(None))):
            raise InputError(f"{path} has a {type(key).__name__} as key, which cannot be stored: use strings.")
        here = f"{path}/{key if isinstance(key, int) else quote(str(key), safe='')}"
        pairs.append([key if isinstance(key, str) else encode(key, put, here), encode(item, put, here)])
    return {"dict": pairs}


def decode(tree: Any, get: Callable[[Any], Tensor]) -> Any:
    """The value that `encode` took apart.

    Args:
        tree: The JSON tree.
        get: Gives the tensor for what stands for it in the tree.

    Raises:
        ValueError, KeyError, TypeError, RecursionError, RuntimeError: The tree is not one that `encode` made.
    """
    if isinstance(tree, list):
        return [decode(item, get) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return get(tree)
    if len(tree) != 1:
        raise ValueError(f"an entry with the keys {', '.join(map(repr, tree))[:80]}")
    ((kind, content),) = tree.items()
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(decode(content[0], get), decode(content[1], get))
    if kind == "tuple":
        return tuple(decode(item, get) for item in content)
    if kind == "dict":
        return {decode(key, get): decode(item, get) for key, item in content}
    if kind == "ndarray":
        return decode(content, get).numpy()
    if kind == "sparse":
        layout, shape, parts = content
        return _sparse(str(layout), [int(n) for n in shape], [get(part) for part in parts])
    raise ValueError(f"an entry of the unknown kind {kind!r}")


def _sparse(layout: str, shape: list[int], parts: list[Tensor]) -> Tensor:
    if layout == "coo":
        indices, values = parts
        return torch.sparse_coo_tensor(indices, values, shape, device="cpu", check_invariants=True).coalesce()
    kind = {name: kind for kind, name in SPARSE.items()}[layout]
    compressed, plain, values = parts
    return torch.sparse_compressed_tensor(
        compressed, plain, values, shape, layout=kind, device="cpu", check_invariants=True
    )


def members(tree: Any) -> dict[str, Any]:
    """The still encoded values of an encoded dict with strings as keys.

    Raises:
        ValueError: It is none.
    """
    pairs = tree.get("dict") if isinstance(tree, dict) else None
    if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        raise ValueError("no dict where one belongs")
    if not all(isinstance(key, str) for key, _ in pairs):
        raise ValueError("a dict whose keys are no names")
    return dict(pairs)
