"""Nested Python values with tensors inside, as a JSON tree and a flat dict of NumPy arrays; no pickle."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from geomtraj.errors import InputError

# The dtypes that NumPy and HDF5 both have; all others (bfloat16, float8) are stored as their bytes.
_NATIVE = {
    torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
}  # fmt: skip


def encode(value: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    """The JSON tree of a value; its tensors go to `arrays` under readable paths.

    Args:
        value: None, bool, int, float, complex, str, tensors, NumPy arrays and scalars, and lists, tuples and
            dicts of them.
        arrays: Where the tensors go, path -> array.
        path: Path of this value ("optimizer/state/0/exp_avg").

    Raises:
        InputError: A value of another type; the message names its path.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else {"float": repr(number)}
    if isinstance(value, numbers.Complex):
        return {"complex": [encode(value.real, arrays, path), encode(value.imag, arrays, path)]}
    if isinstance(value, Tensor):
        return _encode_tensor(value, arrays, path)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return {"ndarray": _encode_tensor(torch.as_tensor(value), arrays, path)}
    if isinstance(value, (list, tuple)):
        items = [encode(item, arrays, f"{path}/{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping):
        pairs = []
        for key, item in value.items():
            here = f"{path}/{quote(str(key), safe='')}"
            if not isinstance(key, (str, int, float, bool, tuple, type(None))):
                raise InputError(f"{path} has a {type(key).__name__} as key, which cannot be stored: use strings.")
            pairs.append([encode(key, arrays, here), encode(item, arrays, here)])
        return {"dict": pairs}
    raise InputError(
        f"{path} holds a {type(value).__name__}, which cannot be stored: keep tensors, numbers, strings, "
        "lists and dicts there."
    )


def decode(tree: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value that `encode` took apart; tensors on the CPU, each with memory of its own."""
    if isinstance(tree, list):
        return [decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind: str
    content: Any
    kind, content = next(iter(tree.items())) if len(tree) == 1 else ("tensor", tree)
    if kind == "float":
        return float(content)
    if kind == "complex":
        return complex(decode(content[0], arrays), decode(content[1], arrays))
    if kind == "tuple":
        return tuple(decode(item, arrays) for item in content)
    if kind == "dict":
        return {decode(key, arrays): decode(item, arrays) for key, item in content}
    if kind == "ndarray":
        return decode(content, arrays).numpy()
    stored = torch.from_numpy(np.array(arrays[content["tensor"]]))
    dtype = getattr(torch, content["dtype"])
    if dtype not in _NATIVE:
        stored = stored.view(dtype)
    return stored.reshape(content["shape"])


def _encode_tensor(value: Tensor, arrays: dict[str, np.ndarray], path: str) -> dict[str, Any]:
    if value.layout != torch.strided or value.is_quantized:
        raise InputError(f"{path} is a sparse or quantized tensor, which cannot be stored: make it dense.")
    tensor = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    dtype = str(tensor.dtype).removeprefix("torch.")
    array = (tensor if tensor.dtype in _NATIVE else tensor.reshape(-1).view(torch.uint8)).numpy()
    name = path
    while name in arrays:  # the keys 0 and "0" of one dict have the same path
        name += "~"
    arrays[name] = array
    return {"tensor": name, "dtype": dtype, "shape": list(tensor.shape)}
