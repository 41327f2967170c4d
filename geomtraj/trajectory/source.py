"""Where a trajectory's iterates come from: what a folder of its own and foreign checkpoints have in common."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from geomtraj.trajectory import fitting, log, store
from geomtraj.trajectory.manifest import read_manifest

IMPORTED = "imported"
"""Entry of the manifest of a run that was copied: step -> the checkpoint that its iterate was copied from."""
Stamp = tuple[int, int]
"""Size in bytes and time of the last change in nanoseconds."""


class Source(Protocol):
    """Iterates that can be read one by one.

    Attributes:
        steps: The steps there are, in order.
        manifest: Config, versions, status of the run.
    """

    steps: list[int]
    manifest: dict[str, Any]

    def read(self, step: int, parts: Collection[str], names: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """One iterate's content: step, wall_time, trainable, and these parts of it."""

    def name(self, step: int) -> Path:
        """The file that errors name."""

    def digest(self, step: int) -> str:
        """What names the content of an iterate among all others."""

    def stamp(self, step: int) -> Stamp | None:
        """Size and time stamp of an iterate on the disk; None where there is none."""

    def log(self) -> list[dict[str, Any]]:
        """One row per logged step: step, wall_time, scalars, and changed settings of the optimizer."""

    def fitted(
        self, model: nn.Module, content: dict[str, dict[str, Tensor]], step: int
    ) -> dict[str, dict[str, Tensor]]:
        """Parameters and buffers under the names that the model has for them."""

    def prepare(self, model: nn.Module) -> None:
        """Make ready the folder that results go into."""


class Recorded:
    """The iterates that a Recorder wrote; see `Source`.

    Args:
        path: The run's folder.

    Raises:
        TrajectoryError: The manifest is missing, damaged or of a newer format.
    """

    def __init__(self, path: Path):
        self.path = path
        self.steps = store.stored_steps(path)
        self.manifest = read_manifest(path) if self.steps else {}

    def read(self, step: int, parts: Collection[str], names: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """The content of one iterate, verified by its checksums.

        Raises:
            TrajectoryError: Its file has been removed or is damaged.
        """
        return store.read_iterate(self.path, step, parts, names=names, run=self.manifest.get("run"))

    def name(self, step: int) -> Path:
        """The iterate's file."""
        return store.iterate_path(self.path, step)

    def digest(self, step: int) -> str:
        """The checksum of its content, read without its tensors."""
        return store.digest(self.path, step)

    def stamp(self, step: int) -> Stamp | None:
        """Size and time stamp of its file."""
        return stamp_of([self.name(step)])

    def log(self) -> list[dict[str, Any]]:
        """The rows of log.jsonl."""
        return log.read_log(self.path, settings=True)

    def fitted(
        self, model: nn.Module, content: dict[str, dict[str, Tensor]], step: int
    ) -> dict[str, dict[str, Tensor]]:
        """The same, since names are the recorded model's own; those of imported checkpoints are looked up."""
        if IMPORTED not in self.manifest:
            return content
        return fitting.fitted(model, content["parameters"] | content["buffers"], self.name(step))

    def prepare(self, model: nn.Module) -> None:
        """Nothing: results stand beside the iterates."""


def stamp_of(files: Collection[Path]) -> Stamp | None:
    """Sum of sizes and latest time stamp of files; None where one is missing, or there are none."""
    try:
        statuses = [os.stat(file) for file in files]
    except OSError:
        return None
    return (sum(s.st_size for s in statuses), max(s.st_mtime_ns for s in statuses)) if statuses else None
