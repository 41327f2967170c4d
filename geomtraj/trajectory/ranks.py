"""Training in several processes, each with the whole model: the first one records, the others only count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn

from geomtraj.errors import TrajectoryError

T = TypeVar("T")


class Ranks:
    """The processes that train one model together, as DistributedDataParallel has wrapped it.

    Args:
        model: The model, in its wrapper or not.

    Attributes:
        writes: Whether this process records.
    """

    def __init__(self, model: nn.Module):
        inner: Any = model
        while hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        wrapped = isinstance(inner, nn.parallel.DistributedDataParallel) and dist.is_initialized()
        self._group: Any = inner.process_group if wrapped else None
        self.writes = not wrapped or dist.get_rank(self._group) == 0

    def by_the_first(self, act: Callable[[], T]) -> T:
        """What `act` gives on the first process, on all of them; its error is one on all.

        Raises:
            TrajectoryError: It failed there; on the first process itself whatever it raised.
        """
        if self._group is None:
            return act()
        held: list[Any] = [None, None]
        error: BaseException | None = None
        if self.writes:
            try:
                held = [act(), None]
            except BaseException as raised:
                error, held = raised, [None, f"{type(raised).__name__}: {raised}"]
        dist.broadcast_object_list(held, src=dist.get_global_rank(self._group, 0), group=self._group)
        if error is not None:
            raise error
        if held[1] is not None:
            raise TrajectoryError(f"the process that records failed: {held[1]}")
        return held[0]
