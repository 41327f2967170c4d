"""What the callbacks of all frameworks have in common."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError, unknown_name
from geomtraj.trajectory import Recorder, Schedule

OPTIONS = tuple(
    name
    for name in inspect.signature(Recorder).parameters
    if name not in ("path", "model", "optimizer", "schedule", "resume")
)
"""What a callback hands on to the Recorder."""


class Recording:
    """A Recorder that is made when training begins.

    Args:
        path: Folder of the trajectory.
        schedule: Which steps to record.
        options: Further options of `gt.Recorder`.

    Raises:
        InputError: There is no such option.
    """

    def __init__(self, path: str | Path, schedule: Schedule | None, options: dict[str, Any]):
        for name in options:
            if name == "resume":
                raise InputError("resume is not for a callback: it goes on where the trainer's own checkpoint is of.")
            if name not in OPTIONS:
                raise unknown_name("option of RecorderCallback", name, OPTIONS)
        self._path, self._schedule, self._options = path, schedule, options
        self.recorder: Recorder | None = None

    def begin(self, model: Any, optimizers: Any, step: int) -> None:
        """Start to record at a step, that of the checkpoint that the trainer restored.

        Raises:
            InputError: The folder holds a trajectory and training begins anew.
            TrajectoryError: It cannot go on there.
        """
        self.end()
        recorder = Recorder(self._path, model, optimizers, self._schedule, **self._options)
        self.recorder = recorder.start(step)

    def log(self, scalars: dict[str, Any]) -> None:
        """Log what is a number, while recording."""
        numbers = {k: v for k, v in scalars.items() if isinstance(v, (int, float)) and k not in ("step", "wall_time")}
        if self.recorder is not None and numbers:
            self.recorder.log(**numbers)

    def record(self) -> None:
        """Record the current step, while recording."""
        if self.recorder is not None:
            self.recorder.record()

    def end(self, error: BaseException | None = None) -> None:
        """Record the last step and stop; a second call does nothing."""
        recorder, self.recorder = self.recorder, None
        if recorder is not None:
            recorder.__exit__(None if error is None else type(error), error, None)
