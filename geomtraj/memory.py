"""How much memory is free, and how much a graph holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

import psutil
import torch
from torch import Tensor

from geomtraj.errors import GeomtrajError
from geomtraj.failures import is_out_of_memory
from geomtraj.trees import is_dense, plain_parts

T = TypeVar("T")


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on this device, the allocator's own cache included."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return psutil.virtual_memory().available


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes that these tensors hold, each storage counted once."""
    storages = {}
    for tensor in tensors:
        for part in [tensor] if is_dense(tensor) else plain_parts(tensor):
            storage = part.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class SavedBytes:
    """Counts, inside its `with` block, the bytes of the tensors that autograd saves for backward passes.

    Attributes:
        total: Bytes, each storage counted once.
    """

    def __init__(self) -> None:
        self.total = 0
        self._seen: set[int] = set()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)

    def _pack(self, tensor: Tensor) -> tuple[Tensor, int]:
        for part in [tensor] if is_dense(tensor) else plain_parts(tensor):
            try:
                storage = part.untyped_storage()
                place, size = storage.data_ptr(), storage.nbytes()
            except (RuntimeError, NotImplementedError):  # a wrapper of torch.func has no memory of its own
                continue
            if place not in self._seen:
                self._seen.add(place)
                self.total += size
        # The tensor itself would make its graph refer to itself, and never be freed.
        return tensor.detach(), tensor._version

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)


def with_saved_bytes(work: Callable[[], T]) -> tuple[T, int]:
    """What `work()` returns, and the bytes that autograd saves for backward passes meanwhile.

    Where it fails with the hooks that count, as torch.func does, it is done again without them and counts as nothing.
    """
    try:
        with SavedBytes() as saved:
            return work(), saved.total
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, GeomtrajError) or is_out_of_memory(error):
            raise
    return work(), 0


def _unpack(packed: tuple[Tensor, int]) -> Tensor:
    """The tensor as it was saved; torch itself does not look at versions where there are hooks."""
    tensor, version = packed
    if tensor._version != version:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} that a derivative needs was modified by an inplace operation."
        )
    return tensor
