"""Timing and memory on a CPU or a GPU."""

from __future__ import annotations

import torch
from common import PeakMemory


def synchronise() -> None:
    """Waits for what a GPU still has to do, if there is one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


class CudaMemory:
    """Largest growth of what torch has allocated on the GPU inside the block, in MiB."""

    def __enter__(self) -> CudaMemory:
        synchronise()
        torch.cuda.reset_peak_memory_stats()
        self._start = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        synchronise()
        self.mib = (torch.cuda.max_memory_allocated() - self._start) / 2**20


def peak_memory(device: torch.device) -> PeakMemory | CudaMemory:
    """A `with` block that measures the largest growth of memory on the device."""
    return CudaMemory() if device.type == "cuda" else PeakMemory()
