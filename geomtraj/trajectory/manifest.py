"""Where a trajectory comes from: config, command, versions, device, model and optimizer, as one JSON file."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from geomtraj._version import __version__
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.parameter_names import aliases
from geomtraj.trajectory.files import read_json, replace_file, write_all
from geomtraj.trajectory.model_state import kinds, named_parameters
from geomtraj.trajectory.steps import class_name, parameters_of
from geomtraj.trajectory.store import newer_format

NAME = "manifest.json"


FORMAT_VERSION = 2
"""Version 2 carries a checksum of everything else in the file."""

_SECRET = re.compile(r"token|secret|passw|credential|api.?key", re.IGNORECASE)

_REQUIRED: dict[str, tuple[type, ...]] = {"status": (str,), "parameters": (dict,), "optimizer": (dict,)}
_OPTIONAL: dict[str, tuple[type, ...]] = {
    "meta": (dict,), "trainable": (list,), "aliases": (dict,), "sessions": (list,), "dtype": (list,),
    "schedule": (str,), "run": (str,), "last_step": (int,), "wall_time": (int, float), "diverged_at": (int, type(None)),
    "not_optimized": (list,), "storage": (dict,), "log_rows": (int,),
}  # fmt: skip


def describe(
    model: nn.Module, optimizers: Sequence[Optimizer], schedule: object, meta: dict[str, Any] | None
) -> dict[str, Any]:
    """The manifest of a run that starts now.

    Args:
        model: The model.
        optimizers: The optimizers that train it.
        schedule: Which steps are recorded; its `repr` is kept.
        meta: What `check_meta` gave back.
    """
    parameters = named_parameters(model)
    described = [{"class": class_name(o), "groups": _groups(o)} for o in optimizers]
    optimizer = {
        "class": classes(optimizers),
        "groups": [group for one in described for group in one["groups"]],
    }
    return {
        "format_version": FORMAT_VERSION,
        "run": uuid.uuid4().hex,
        "status": "running",
        "diverged_at": None,
        "meta": check_meta(meta),
        "schedule": repr(schedule),
        "parameters": {name: list(p.shape) for name, p in parameters.items()},
        "trainable": [name for name, p in parameters.items() if p.requires_grad],
        "not_optimized": not_optimized(model, optimizers),
        "aliases": aliases(model),
        "kinds": kinds(model),
        "dtype": sorted({str(p.dtype).removeprefix("torch.") for p in parameters.values()}),
        "optimizer": optimizer,
        **({"optimizers": described} if len(described) > 1 else {}),
        "sessions": [],
    }


def classes(optimizers: Sequence[Optimizer]) -> str:
    """The class names of the optimizers, each once: "Muon + AdamW"."""
    return " + ".join(dict.fromkeys(class_name(o) for o in optimizers))


def not_optimized(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[str]:
    """Names of the trainable parameters that none of the optimizers holds."""
    held = parameters_of(optimizers)
    return [name for name, p in named_parameters(model).items() if p.requires_grad and id(p) not in held]


def about(described: dict[str, Any]) -> dict[str, Any]:
    """What each iterate carries of the manifest, so that a lost one can be rebuilt."""
    keys = ("meta", "schedule", "not_optimized", "aliases", "storage")
    return {**{key: described[key] for key in keys if key in described}, "optimizer": described["optimizer"]["class"]}


def session(model: nn.Module, from_step: int, optimizers: Sequence[Optimizer] = ()) -> dict[str, Any]:
    """One stretch of recording without a stop: command, time, versions, device, git commit."""
    devices = sorted({str(p.device) for p in named_parameters(model).values()})
    return {
        "from_step": from_step,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "geomtraj": __version__,
            **_packages(optimizers),
        },
        "platform": platform.platform(),
        "device": ", ".join(
            f"{name} ({torch.cuda.get_device_name(name)})" if name.startswith("cuda") else name for name in devices
        ),
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def _packages(optimizers: Sequence[Optimizer]) -> dict[str, str]:
    """The versions of the packages that optimizers are of, where that is not torch."""
    found: dict[str, str] = {}
    for package in {type(o).__module__.partition(".")[0] for o in optimizers} - {"torch", "geomtraj", "__main__"}:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def command(arguments: Sequence[str]) -> str:
    """A command line without the values of arguments that are named like secrets."""
    shown: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if shown and _SECRET.search(shown[-1]) and shown[-1].startswith("-") and "=" not in shown[-1]:
            argument = "..."
        elif equals and value and _SECRET.search(name):
            argument = f"{name}=..."
        shown.append(argument)
    return shlex.join(shown)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the trajectory in `folder`, verified.

    Raises:
        TrajectoryError: It is missing, damaged or of a newer format; the message names the field.
    """
    path = folder / NAME
    manifest = read_json(path)
    version = manifest.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise newer_format(path, version, FORMAT_VERSION)
    expected = manifest.pop("sha256", None)
    if version not in (1, 2) or isinstance(version, bool):
        raise _damaged(path, f"its format_version is {version!r}")
    if (version == 2 or expected is not None) and expected != _checksum(manifest):
        raise _damaged(path, "its checksum does not hold")
    for name, types in (_REQUIRED | _OPTIONAL).items():
        if name in _REQUIRED and name not in manifest:
            raise _damaged(path, f"it has no {name}")
        value = manifest.get(name, _Absent)
        if value is not _Absent and (not isinstance(value, types) or isinstance(value, bool)):
            raise _damaged(path, f"its {name} is a {type(value).__name__}")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Store the manifest atomically, with its checksum.

    Raises:
        TrajectoryError: The disk is full or the folder cannot be written.
    """
    manifest = {**manifest, "format_version": FORMAT_VERSION}
    content = json.dumps({**manifest, "sha256": _checksum(manifest)}, indent=1) + "\n"
    replace_file(folder / NAME, lambda descriptor: write_all(descriptor, content.encode()))


class _Absent:
    pass


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, why: str) -> TrajectoryError:
    return TrajectoryError(
        f"{path} is damaged ({why}): restore it from a copy, or rebuild it from the iterates with `geomtraj repair`."
    )


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


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def plain(value: object) -> Any:
    """A hyperparameter as JSON has it: numbers, strings and lists of them, the rest by its `repr`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return repr(value)
