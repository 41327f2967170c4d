"""Foreign checkpoints, copied into a run of geomtraj's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError
from geomtraj.trajectory import store
from geomtraj.trajectory.checkpoints.source import Checkpoints
from geomtraj.trajectory.folder import RunFolder, absolute
from geomtraj.trajectory.log import LogWriter
from geomtraj.trajectory.manifest import NAME as MANIFEST
from geomtraj.trajectory.manifest import about, check_meta, read_manifest, write_manifest
from geomtraj.trajectory.source import IMPORTED
from geomtraj.trajectory.store import DamagedFile


def copy_into(path: str | Path, checkpoints: Checkpoints, meta: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """Copy checkpoints into a folder, one by one; those that stand there already are left.

    Args:
        path: The folder of the run, which is made where it is absent.
        checkpoints: What is copied.
        meta: What the reader of the trajectory should know, such as optimizer and seed.

    Yields:
        Each step, and why it was left out; empty where it was copied.

    Raises:
        InputError: The folder holds another run, or a file.
        TrajectoryError: The disk is full.
    """
    folder = RunFolder(absolute(path))
    folder.hold()
    try:
        manifest = _manifest(folder.path, checkpoints, meta)
        there = set(store.stored_steps(folder.path))
        write_manifest(folder.path, manifest)
        for step in checkpoints.steps:
            if step in there:
                yield step, ""
                continue
            try:
                content = checkpoints.read(step, ("parameters", "buffers", "optimizer"))
            except DamagedFile as error:
                yield step, str(error)
                continue
            content |= {"run": manifest["run"], "about": about(manifest)}
            store.write_iterate(folder.path, step, content)
            yield step, ""
        writer = LogWriter(folder.path)
        writer.start(-1)
        for row in checkpoints.log():
            writer.append(row)
        writer.close()
    finally:
        folder.release()


def _manifest(folder: Path, checkpoints: Checkpoints, meta: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the copied run, which goes on with one that stands there of the same checkpoints."""
    described = {k: v for k, v in checkpoints.manifest.items() if k != "checkpoints"}
    places = checkpoints.manifest["checkpoints"]
    made = described | {"run": uuid.uuid4().hex, "meta": check_meta(meta), IMPORTED: places, "schedule": "imported"}
    made["optimizer"] = {"class": "", **described["optimizer"]}
    if not (folder / MANIFEST).exists() and not store.stored_steps(folder):
        return made
    earlier = read_manifest(folder)
    known = earlier.get(IMPORTED)
    if not isinstance(known, dict) or any(known[step] != place for step, place in places.items() if step in known):
        raise InputError(f"{folder} holds another run: import into a folder of its own.")
    return made | {"run": earlier["run"], IMPORTED: known | places, "meta": earlier.get("meta", {}) | made["meta"]}
