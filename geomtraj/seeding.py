"""Random numbers that leave torch's global generators untouched."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator that depends on nothing but the seed and what the numbers are for.

    Args:
        seed: Any integer.
        purpose: A short name of the use ("trace probes"): two purposes draw independent numbers from one seed.
    """
    digest = hashlib.sha256(f"{int(seed)}:{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rademacher(shape: tuple[int, ...], rng: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Independent random signs, +1 or -1 with probability 1/2 each.

    The signs are drawn on the CPU, so that every device sees the same ones.

    Args:
        shape: Shape of the result.
        rng: The CPU generator to draw from.
        like: A tensor whose dtype and device the result takes.
    """
    bits = torch.randint(0, 2, shape, generator=rng, dtype=torch.int8)
    return bits.to(device=like.device, dtype=like.dtype).mul_(2).sub_(1)


def gaussian(shape: tuple[int, ...], rng: torch.Generator, like: torch.Tensor) -> torch.Tensor:
    """Independent standard normal numbers, drawn in float64 on the CPU; arguments as for `rademacher`."""
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(device=like.device, dtype=like.dtype)
