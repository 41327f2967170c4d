"""Where the bases of Lanczos runs find room."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geomtraj.memory import available_bytes
from geomtraj.operators.base import SymmetricOperator

SHARE = 0.5
"""Part of the free memory that bases may take."""


@dataclass(frozen=True)
class Room:
    """A plan for Lanczos bases.

    Attributes:
        steps: Steps of each run, fewer than asked for where even one basis does not fit anywhere.
        together: Runs that go side by side.
        device: Where the bases lie.
        remark: "" or a sentence on what had to be cut.
    """

    steps: int
    together: int
    device: torch.device
    remark: str = ""


def plan(operator: SymmetricOperator, steps: int, probes: int) -> Room:
    """Room for `probes` bases of `steps` vectors: side by side, in turn, on the CPU, or shorter, in that order.

    Half of the free memory is filled at most. The remainders of all runs count too, a vector each.
    """
    vector = max(operator.shape[0], 1) * operator.dtype.itemsize
    cpu = torch.device("cpu")
    for device in dict.fromkeys([operator.device, cpu]):
        vectors = int(SHARE * available_bytes(device)) // vector
        if vectors >= steps + 2:
            remark = (
                ""
                if device == operator.device
                else "the Lanczos bases did not fit beside the operator: kept on the CPU"
            )
            return Room(steps, min(probes, vectors // (steps + 2)), device, remark)
        most = vectors - 2
    fewer = max(most, 1)
    remark = (
        f"only {fewer} of {steps} Lanczos steps: a basis of {steps} needs {steps * vector / 2**30:.1f} GiB, "
        f"and {SHARE * available_bytes(cpu) / 2**30:.1f} GiB are free for it"
    )
    return Room(fewer, 1, cpu, remark)
