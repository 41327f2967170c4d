"""Foreign checkpoints as the source of a trajectory's iterates."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geomtraj import parameter_names
from geomtraj._version import __version__
from geomtraj.errors import GeomtrajError, InputError, TrajectoryError
from geomtraj.isolation import on_the_cpu
from geomtraj.trajectory import fitting, model_state
from geomtraj.trajectory.checkpoints import finding, numbering, reading
from geomtraj.trajectory.checkpoints.forms import Content, as_step, is_optimizer, tensors_in
from geomtraj.trajectory.checkpoints.hub import Revision
from geomtraj.trajectory.files import write_error
from geomtraj.trajectory.folder import absolute
from geomtraj.trajectory.log import NAME as LOG
from geomtraj.trajectory.log import LogWriter
from geomtraj.trajectory.manifest import FORMAT_VERSION, plain, read_manifest, write_manifest
from geomtraj.trajectory.manifest import NAME as MANIFEST
from geomtraj.trajectory.source import Stamp, stamp_of
from geomtraj.trajectory.store import FOLDER as ITERATES

Load = Callable[[Any], Mapping[str, Any]]
OUT = "geomtraj"
"""The folder beside the checkpoints that results go into where no other is named."""


class Checkpoints:
    """Checkpoints on the disk, each read when its iterate is asked for; see `geomtraj.trajectory.source.Source`.

    Args:
        paths: A folder, a glob, or a list of files, folders and globs; anything at all where `load` reads it.
        steps: Whole numbers in the order of the checkpoints, or a function of a path; None to find them.
        load: Reads one checkpoint: path -> {"model": state_dict, "optimizer": state_dict or None, "step": int}.
        out: The folder that results go into; None for `geomtraj` beside the checkpoints.

    Raises:
        InputError: An argument that cannot be used.
        TrajectoryError: There is no checkpoint, one cannot be read, or its step cannot be told.

    Attributes:
        path: The folder that results go into.
        steps: The steps there are, in order.
        manifest: What is known of the run.
    """

    def __init__(self, paths: Any, steps: Any = None, load: Load | None = None, out: str | Path | None = None):
        if load is not None and not callable(load):
            raise InputError(f"load is a {type(load).__name__}: give a function of a path that returns {_WANTED}.")
        self._load = load
        meant = finding.found(paths) if load is None else finding.found_or_names(paths)
        if steps is not None:
            listed = numbering.given_steps(steps, meant)
            twice = next((step for step in listed if listed.count(step) > 1), None)
            if twice is not None:
                raise InputError(f"steps has {twice} more than once: each checkpoint has a step of its own.")
            self._places: dict[int, Any] = dict(sorted(zip(listed, meant, strict=True)))
        else:
            self._places = numbering.known_steps(meant, self._peek)
        self.steps = list(self._places)
        self.path = absolute(_beside(meant) / OUT if out is None else out)
        self.manifest = self._described()
        self._aliases: dict[str, str] = self.manifest["aliases"]

    @on_the_cpu
    def read(self, step: int, parts: Collection[str], names: Callable[[str], bool] | None = None) -> dict[str, Any]:
        """One iterate's content; wall_time is NaN, since checkpoints do not know it.

        Raises:
            DamagedFile: It is cut short or altered.
            TrajectoryError: It has no model, or cannot be opened.
        """
        if not {"parameters", "buffers", "optimizer"} & set(parts):
            return {"step": step, "wall_time": math.nan, "trainable": []}
        content = self._content(step, "optimizer" in parts)
        found: dict[str, Any] = {"step": step, "wall_time": math.nan}
        parameters, buffers, _ = fitting.parted(content.model)
        found["trainable"] = list(parameters)
        for part, tensors in (("parameters", parameters), ("buffers", buffers)):
            if part in parts:
                found[part] = {k: t for k, t in tensors.items() if names is None or names(k)}
        if "optimizer" in parts:
            found["optimizer"] = content.optimizer
        return found

    def name(self, step: int) -> Any:
        """The checkpoint's file or folder."""
        return self._places[step]

    def digest(self, step: int) -> str:
        """A checksum of its tensors."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self._content(step, False).model.items()):
            sha.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
        return sha.hexdigest()

    def stamp(self, step: int) -> Stamp | None:
        """Size and time stamp of its files; None where `load` reads something else."""
        place = self._places[step]
        return stamp_of(reading.files_of(place)) if isinstance(place, Path) else None

    def log(self) -> list[dict[str, Any]]:
        """What the Trainer of transformers logged until the last checkpoint; else nothing."""
        place = self._places[self.steps[-1]]
        return reading.log_of(place) if isinstance(place, Path) and self._load is None else []

    def fitted(
        self, model: nn.Module, content: dict[str, dict[str, Tensor]], step: int
    ) -> dict[str, dict[str, Tensor]]:
        """Parameters and buffers under the names that the model has for them.

        Raises:
            TrajectoryError: Several parts of the checkpoint fit, or a number type cannot stand for the model's.
        """
        tensors = content["parameters"] | content["buffers"]
        tied = {alias: tensors[name] for alias, name in self._aliases.items() if name in tensors}
        return fitting.fitted(model, tied | tensors, self._places[step])

    def prepare(self, model: nn.Module) -> None:
        """Make the folder for results, with a manifest of what is known of the run and of the model.

        Raises:
            TrajectoryError: The folder cannot be written, or holds a run of its own or another program's manifest.
        """
        self.manifest |= {
            "parameters": {name: list(p.shape) for name, p in model_state.named_parameters(model).items()},
            "aliases": parameter_names.aliases(model),
            "kinds": model_state.kinds(model),
        }
        own = self.path / MANIFEST
        if (self.path / ITERATES).is_dir() or (own.exists() and "checkpoints" not in read_manifest(self.path)):
            raise TrajectoryError(f"{self.path} holds a recorded run of its own: choose another folder by out=.")
        try:
            if self.path.exists() and not os.access(self.path, os.W_OK):
                return  # measure says that results cannot be written, where there are any to write
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self.path, error) from error
        write_manifest(self.path, self.manifest)
        rows = self.log()
        if rows or (self.path / LOG).exists():
            (self.path / LOG).unlink(missing_ok=True)
            writer = LogWriter(self.path)
            writer.start(-1)
            for row in rows:
                writer.append(row)
            writer.close()

    def _peek(self, path: Any) -> int | None:
        if isinstance(path, Revision):
            return None
        if self._load is None:
            return reading.peek(path)
        return self._loaded(path).step

    def _content(self, step: int, optimizer: bool) -> Content:
        place = self._places[step]
        if self._load is None:
            place = place.fetched() if isinstance(place, Revision) else place
            content = reading.read(place, optimizer=optimizer)
            stored = reading.bytes_of(place)
        else:
            content, stored = self._loaded(place), None
        content.model = reading.checked(place, fitting.without_wrappers(content.model, content.lightning), stored)
        return content

    def _loaded(self, place: Any) -> Content:
        assert self._load is not None
        try:
            held = self._load(place)
        except GeomtrajError:
            raise
        except Exception as error:
            raise TrajectoryError(f"load({str(place)!r}) failed ({type(error).__name__}: {error}).") from error
        if not isinstance(held, Mapping) or not isinstance(held.get("model"), Mapping):
            raise InputError(f"load({str(place)!r}) returned {_kind(held)}: return {_WANTED}.")
        if held.get("optimizer") is not None and not is_optimizer(held["optimizer"]):
            raise InputError(f"load({str(place)!r}) returned an 'optimizer' that is no state_dict: return {_WANTED}.")
        step = held.get("step")
        return Content(
            tensors_in(held["model"], f"load({str(place)!r})"),
            held.get("optimizer"),
            None if step is None else as_step(step, f"load({str(place)!r}) says step = {step!r:.40}"),
        )

    def _described(self) -> dict[str, Any]:
        """The manifest: what the first checkpoint that can be read tells."""
        content = Content({})
        for step in self.steps:
            try:
                content = self._content(step, True)
                break
            except TrajectoryError:
                if step == self.steps[-1]:
                    raise
        parameters, _, aliases = fitting.parted(content.model)
        states = content.optimizer if isinstance(content.optimizer, list) else [content.optimizer]
        groups = [
            {str(k): plain(v) for k, v in group.items() if k != "params"}
            for state in states
            if state is not None
            for group in state["param_groups"]
        ]
        return {
            "format_version": FORMAT_VERSION,
            "status": "complete",
            "meta": {},
            "parameters": {name: list(tensor.shape) for name, tensor in parameters.items()},
            "aliases": aliases,
            "dtype": sorted({str(t.dtype).removeprefix("torch.") for t in parameters.values()}),
            "optimizer": {"groups": groups},
            "last_step": self.steps[-1],
            "sessions": [{"versions": {"geomtraj": __version__, "torch": str(torch.__version__)}}],
            "checkpoints": {str(step): str(place) for step, place in self._places.items()},
        }


_WANTED = '{"model": state_dict, "optimizer": state_dict or None, "step": int}'


def _kind(held: Any) -> str:
    return f"a dict with {', '.join(map(repr, held))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"


def _beside(meant: list[Any]) -> Path:
    """The folder that all checkpoints stand in."""
    paths = [place for place in meant if isinstance(place, Path)]
    if len(paths) < len(meant):
        raise InputError("these are no files: say by out=FOLDER where results are to be kept.")
    return Path(os.path.commonpath([place.parent for place in paths]))
