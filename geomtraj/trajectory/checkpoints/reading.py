"""One checkpoint, a file or a folder, as tensors by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory.checkpoints.forms import Content, as_step, content_of, is_optimizer, optimizer_of
from geomtraj.trajectory.checkpoints.safetensors_files import INDEX, load_index, load_safetensors, metadata
from geomtraj.trajectory.checkpoints.torch_files import SPREAD, load_torch, unreadable
from geomtraj.trajectory.files import read_json

MODEL_FILES = tuple(
    f"{stem}{suffix}"
    for stem in ("model", "pytorch_model", "adapter_model", "diffusion_pytorch_model")
    for suffix in (".safetensors", f".safetensors{INDEX}", ".bin", f".bin{INDEX}")
)
"""Names of the model in folders of transformers, accelerate and their like."""
OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")
STATE = "trainer_state.json"
SAFE = ".safetensors"


def model_file(folder: Path) -> Path | None:
    """The file, or index of files, that holds the model of a folder; None where there is none."""
    return next((folder / name for name in MODEL_FILES if (folder / name).is_file()), None)


def files_of(path: Path) -> list[Path]:
    """The files that a checkpoint is read from, the shards of a model aside."""
    if not path.is_dir():
        return [path]
    named = [model_file(path), *(path / name for name in (*OPTIMIZER_FILES, STATE))]
    return [file for file in named if file is not None and file.is_file()]


def read(path: Path, *, optimizer: bool = False) -> Content:
    """What a checkpoint holds, verified as far as its form carries checksums.

    Args:
        path: The file or folder.
        optimizer: Whether to read an optimizer's state from a file of its own, beside the model's.

    Raises:
        DamagedFile: It is cut short or altered.
        TrajectoryError: It is of no known form, or cannot be opened.
    """
    if not path.is_dir():
        return _file(path)
    model = model_file(path)
    if model is None:
        raise TrajectoryError(f"{path} holds no model any more (such as model.safetensors): put it back.")
    content = _file(model)
    beside = next((path / name for name in OPTIMIZER_FILES if (path / name).is_file()), None)
    if optimizer and beside is not None:
        held = load_torch(beside)
        content.optimizer = held if is_optimizer(held) else optimizer_of({"optimizer": held})
    content.step, content.log = _state(path)
    return content


def peek(path: Path) -> int | None:
    """The count of steps that a checkpoint names, read without its tensors; None where it names none.

    Raises:
        DamagedFile, TrajectoryError: As for `read`.
    """
    if path.is_dir():
        return _state(path)[0]
    if path.name.endswith(INDEX):
        return None
    if path.suffix == SAFE:
        step = metadata(path).get("step")
        return int(step) if step is not None and step.isdecimal() else None
    return content_of(load_torch(path, whole=False), path).step


def checked(path: Any, tensors: Mapping[str, Tensor], stored: int | None) -> dict[str, Tensor]:
    """Copies of the tensors, none of which keeps the file open; tied ones stay one.

    Args:
        path: As errors name it.
        tensors: By name.
        stored: Bytes of the files; None where they are not known.

    Raises:
        DamagedFile: They are larger than what is stored for them.
    """
    total = 0
    for name, tensor in tensors.items():
        if tensor.device.type == "meta":
            raise unreadable(path, f"{name} has a shape and no numbers")
        total += tensor.numel() * tensor.element_size()
        if stored is not None and total > 2 * stored + SPREAD:
            raise unreadable(path, f"its tensors have {total} bytes up to {name}, its files {stored}")
    made: dict[tuple[Any, ...], Tensor] = {}
    found = {}
    for name, tensor in tensors.items():
        plain = tensor.detach()
        key = (plain.data_ptr(), plain.shape, plain.stride(), plain.dtype) if plain.numel() else (name,)
        if key not in made:
            made[key] = plain.contiguous().clone() if plain.is_contiguous() else plain.contiguous()
        found[name] = made[key]
    return found


def bytes_of(path: Path) -> int:
    """Bytes of a checkpoint's files, all shards included."""
    files = path.rglob("*") if path.is_dir() else [path]
    if path.name.endswith(INDEX):
        files = path.parent.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())


def log_of(path: Path) -> list[dict[str, Any]]:
    """The training log that the Trainer of transformers leaves beside a model; else nothing."""
    try:
        return _state(path)[1] if path.is_dir() else []
    except TrajectoryError:
        return []


def _file(path: Path) -> Content:
    if path.name.endswith(f"{SAFE}{INDEX}"):
        return content_of(load_index(path, load_safetensors), path)
    if path.name.endswith(INDEX):
        return content_of(load_index(path, load_torch), path)
    if path.suffix == SAFE:
        content = content_of(load_safetensors(path), path)
        content.step = peek(path)
        return content
    return content_of(load_torch(path), path)


def _state(folder: Path) -> tuple[int | None, list[dict[str, Any]]]:
    """Step and training log in what the Trainer of transformers leaves in a folder."""
    path = folder / STATE
    if not path.is_file():
        return None, []
    state = read_json(path)
    step = state.get("global_step")
    known = None if step is None else as_step(step if isinstance(step, (int, float)) else -1, f"{path}: {step!r:.40}")
    rows: dict[int, dict[str, Any]] = {}
    history = state.get("log_history")
    for row in history if isinstance(history, list) else ():
        if isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**63:
            scalars = {k: v for k, v in row.items() if type(v) is float or (type(v) is int and abs(v) < 2**1000)}
            rows.setdefault(row["step"], {"step": row["step"], "wall_time": math.nan}).update(scalars)
    return known, [rows[at] for at in sorted(rows)]
