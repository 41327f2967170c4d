"""Writing iterates beside training: one at a time, from a copy, so that memory stays bounded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from geomtraj.failures import is_out_of_memory


class Background:
    """Runs one job at a time in a thread; the next waits for it, and its error is raised where training is.

    The interpreter ends only when the job has.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Start a job, once the one before has ended; raises that one's error."""
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="geomtraj recorder")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the job that runs; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a job that has failed, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            self._error = error


def copied(value: dict[str, Any]) -> dict[str, Any] | None:
    """Nested values with every tensor copied to the CPU, which training then cannot change; None for want of memory."""
    try:
        return _copied(value)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_copied(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
