"""Random signs that belong to an example and a probe, whatever batch the example stands in."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.nn import functional as F


def signs(key: int, examples: Tensor, probe: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Independent random signs (B, *shape), one for each entry of each example.

    They are a hash of (key, example, probe, place in the flattened shape), so that they depend neither on the
    batches nor on the device.

    Args:
        key: What the signs are for, see `key_of`.
        examples: Numbers (B,) of the examples in the data, int64, on the device of the result.
        probe: Number of the probe.
        shape: Shape for one example.
        dtype: Number type of the result.
    """
    size = 1
    for n in shape:
        size *= n
    rows = _mix(_mix(examples + key) + probe)
    words = _mix(rows[:, None] + torch.arange(-(-size // 64), device=examples.device) * _GOLDEN)
    table = _byte_signs(dtype, examples.device)
    spread = F.embedding(words.view(torch.uint8).to(torch.int64), table)
    return spread.reshape(len(examples), -1)[:, :size].reshape(len(examples), *shape)


def signs_at(key: int, examples: Tensor, places: Tensor, probe: int, dtype: torch.dtype) -> Tensor:
    """Independent random signs (K,), one for each pair of an example and a place."""
    words = _mix(_mix(_mix(examples + key) + probe) + places * _GOLDEN)
    return (2 * (words & 1) - 1).to(dtype)


def key_of(seed: int, purpose: str) -> int:
    """A 64-bit key that depends on nothing but the seed and what the signs are for."""
    digest = hashlib.sha256(f"{int(seed)}:{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True) >> 2


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(words: Tensor) -> Tensor:
    """The finaliser of SplitMix64, on int64 with wrap-around.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
    """
    words = words + _GOLDEN
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    return (words >> bits) & ((1 << (64 - bits)) - 1)  # >> alone copies the sign bit


def _byte_signs(dtype: torch.dtype, device: torch.device) -> Tensor:
    bits = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return (2 * bits - 1).to(dtype)
