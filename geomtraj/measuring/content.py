"""What an iterate holds, as a checksum, and whether its file is still the one that was read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomtraj.trajectory import Iterate, Trajectory
from geomtraj.trees import is_dense, plain_parts

SETTLED_SECONDS = 2.0
"""A file changed this shortly before it was read may change again under the same time stamp."""


def content_of(iterate: Iterate) -> str:
    """A checksum of an iterate's parameters and buffers: names, number types, shapes and bits.

    It says what a result was measured at, whatever the format of the file that the iterate is stored in.
    """
    sha = hashlib.sha256()
    for kind, tensors in (("parameter", iterate.parameters), ("buffer", iterate.buffers)):
        for name in sorted(tensors):
            _add(sha, f"{kind} {name}", tensors[name])
    return sha.hexdigest()[:32]


def _add(sha: Any, name: str, tensor: Tensor) -> None:
    sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
    for part in [tensor] if is_dense(tensor) else plain_parts(tensor):
        plain = part.detach().cpu().contiguous().reshape(-1)
        if plain.numel():
            sha.update(plain.view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Seen:
    """An iterate's content, and the size and time stamp of its file when it was read.

    Attributes:
        content: As `content_of` gives it.
        stamp: Size in bytes and time of the last change in nanoseconds; None where they say nothing.
    """

    content: str
    stamp: tuple[int, int] | None = None

    def to_json(self) -> list[Any]:
        """The record in JSON's types."""
        return [self.content, *(self.stamp or ())]

    @classmethod
    def from_json(cls, content: list[Any]) -> Seen:
        """The record that `to_json` wrote.

        Raises:
            ValueError: It is none.
        """
        if type(content) is not list or [type(part) for part in content] not in ([str], [str, int, int]):
            raise ValueError(f"one of its iterates is {content!r:.40}")
        return cls(content[0], (content[1], content[2]) if len(content) > 1 else None)


def settled(stamp: tuple[int, int] | None) -> tuple[int, int] | None:
    """The stamp of a file that is about to be read, if a later change of the file is sure to change it."""
    return stamp if stamp is not None and time.time() - stamp[1] / 1e9 > SETTLED_SECONDS else None


def still(seen: Mapping[int, Seen], trajectory: Trajectory, step: int) -> str | None:
    """The content of an iterate whose file has not changed since it was seen; None where it has to be read."""
    known = seen.get(step)
    if known is None or known.stamp is None or known.stamp != trajectory.stamp(step):
        return None
    return known.content
