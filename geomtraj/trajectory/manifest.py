"""Where a trajectory comes from: config, command, versions, device, model and optimizer, as one JSON file."""

from __future__ import annotations

import datetime
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from geomtraj._version import __version__
from geomtraj.errors import InputError
from geomtraj.trajectory.files import read_json, write_json
from geomtraj.trajectory.model_state import aliases, kinds, named_parameters
from geomtraj.trajectory.store import FORMAT_VERSION, newer_format

NAME = "manifest.json"


def describe(
    model: nn.Module, optimizer: torch.optim.Optimizer, schedule: object, meta: dict[str, Any] | None
) -> dict[str, Any]:
    """The manifest of a run that starts now.

    Raises:
        InputError: `meta` is no dict that JSON can hold.
    """
    parameters = named_parameters(model)
    return {
        "format_version": FORMAT_VERSION,
        "status": "running",
        "diverged_at": None,
        "meta": check_meta(meta),
        "schedule": repr(schedule),
        "parameters": {name: list(p.shape) for name, p in parameters.items()},
        "trainable": [name for name, p in parameters.items() if p.requires_grad],
        "aliases": aliases(model),
        "kinds": kinds(model),
        "dtype": sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()}),
        "optimizer": {
            "class": type(optimizer).__name__,
            "groups": [
                {key: _plain(value) for key, value in group.items() if key != "params"}
                for group in optimizer.param_groups
            ],
        },
        "sessions": [],
    }


def session(model: nn.Module, from_step: int) -> dict[str, Any]:
    """One stretch of recording without a stop: command, time, versions, device, git commit."""
    devices = sorted({str(p.device) for p in named_parameters(model).values()})
    return {
        "from_step": from_step,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "geomtraj": __version__,
        },
        "platform": platform.platform(),
        "device": ", ".join(
            f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name for name in devices
        ),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the trajectory in `folder`.

    Raises:
        TrajectoryError: It is missing, damaged or of a newer format.
    """
    manifest = read_json(folder / NAME)
    version = manifest.get("format_version", 0)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise newer_format(folder / NAME, version)
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Store the manifest atomically.

    Raises:
        TrajectoryError: The disk is full or the folder cannot be written.
    """
    write_json(folder / NAME, manifest)


def check_meta(meta: object) -> dict[str, Any]:
    """A copy of `meta` as JSON gives it back.

    Raises:
        InputError: It is no dict, or holds something that JSON cannot.
    """
    if meta is not None and not isinstance(meta, dict):
        raise InputError(f"meta must be a dict, not {type(meta).__name__}: write meta={{'lr': 0.1}}.")
    try:
        return json.loads(json.dumps(meta or {}))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"meta goes into a JSON file ({error}): keep numbers, strings, lists and dicts in it."
        ) from error


def git_commit() -> str | None:
    """The commit checked out in the current folder, or None outside a repository or without git."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None


def _plain(value: object) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)
