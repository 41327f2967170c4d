"""Which checkpoints are meant by folders, globs and files, in the order of their names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory.checkpoints import hub
from geomtraj.trajectory.checkpoints.reading import OPTIMIZER_FILES, SAFE, STATE, model_file
from geomtraj.trajectory.checkpoints.safetensors_files import INDEX

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", SAFE)
_BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|training_args|rng_state|random_states|sampler|dl_state_dict)[\w.-]*\.(pt|pth|bin)"
)
_SHARD = re.compile(r"-\d+-of-\d+\.\w+$")
_DEEPEST = 4


def found(paths: Any) -> list[Any]:
    """The checkpoints that are meant, absolute paths or revisions on the hub, each once, by the numbers in their names.

    A list keeps its order, each of its folders and globs in the place where it stands.

    Raises:
        InputError: Something in `paths` is no path.
        TrajectoryError: There are none, or a folder does not say which of several it means.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    if not isinstance(paths, Iterable):
        raise InputError(f"paths is a {type(paths).__name__}: give a folder, a glob, or a list of files or folders.")
    several: dict[Any, None] = {}
    for item in paths:
        if not isinstance(item, (str, os.PathLike)):
            raise InputError(f"paths holds a {type(item).__name__}: give a folder, a glob, or a list of them.")
        text = os.fspath(item)
        several |= dict.fromkeys(hub.revisions(text) if text.startswith(hub.SCHEME) else _meant(text))
    if not several:
        raise TrajectoryError("paths is empty: give a folder, a glob, or a list of files or folders.")
    return list(several)


def found_or_names(paths: Any) -> list[Any]:
    """What a function that reads other forms is called with: files of any kind; what is no file stays as it is.

    Raises:
        InputError, TrajectoryError: As for `found`.
    """
    items = [paths] if isinstance(paths, (str, os.PathLike)) or not isinstance(paths, Iterable) else list(paths)
    meant: list[Any] = []
    for item in items:
        text = os.fspath(item) if isinstance(item, (str, os.PathLike)) else ""
        if text and os.path.isdir(text) and len(items) == 1:
            meant += in_order(p.absolute() for p in _children(Path(text)) if not p.name.startswith("."))
        elif text and os.path.lexists(text):
            meant.append(Path(os.path.abspath(text)))
        elif text and glob.has_magic(text) and (matches := glob.glob(text, recursive=True)):
            meant += in_order(Path(os.path.abspath(match)) for match in matches)
        else:
            meant.append(item)
    if not meant:
        raise TrajectoryError("paths is empty: give what load is to be called with.")
    return meant


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths by name, numbers in them by their value."""
    return sorted(paths, key=lambda p: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", str(p))])


def _meant(text: str) -> list[Path]:
    try:
        path = Path(os.path.abspath(os.path.expanduser(text)))
        if path.is_dir():
            return _in_folder(path)
        if os.path.lexists(path):
            return [path]
    except (ValueError, OSError) as error:
        raise InputError(f"{text[:200]!r} is no usable path ({error}): give a folder, a glob or a file.") from error
    if glob.has_magic(text):
        matches = in_order(Path(match) for match in glob.glob(os.path.expanduser(text), recursive=True))
        meant = [Path(os.path.abspath(match)) for match in matches]
        several = [p for match in meant for p in (_in_folder(match) if match.is_dir() else [match] * _counts(match))]
        if several:
            return several
        raise TrajectoryError(f"no checkpoint matches {text}: give a folder, a glob or a list of files.")
    raise TrajectoryError(f"there is no file or folder {text}: give a folder, a glob, or a list of files or folders.")


def _in_folder(folder: Path) -> list[Path]:
    """The checkpoints in a folder: itself, or what stands in the first level below that has any."""
    below = _level(folder)
    if model_file(folder) is not None and not (below and (folder / STATE).is_file()):
        # The last model beside the Trainer's checkpoint-N folders has a step of its own only with the Trainer's state.
        return [folder] if not below else in_order(below)
    found = in_order(below)
    if model_file(folder) is not None:
        return [*found, folder]
    level, deep = [folder], 0
    while not found and level and deep < _DEEPEST:
        level = [p for f in level for p in in_order(_children(f)) if p.is_dir()]
        homes = [f for f in level if _level(f)]
        if homes and all(len(_level(f)) == 1 for f in homes):  # such as run-100/ckpt.pt, run-200/ckpt.pt
            return [p for f in homes for p in _level(f)]
        if len(homes) > 1:
            names = ", ".join(str(f.relative_to(folder)) for f in homes[:4])
            raise TrajectoryError(f"several folders in {folder} hold checkpoints ({names}): give one of them.")
        found = in_order(_level(homes[0])) if homes else []
        deep += 1
    if not found:
        raise TrajectoryError(
            f"{folder} holds no checkpoints ({', '.join(SUFFIXES)}, or folders with a model): give another folder, or "
            "a list of files with load=."
        )
    return found


def _level(folder: Path) -> list[Path]:
    """Files and folders right in a folder that are checkpoints."""
    children = _children(folder)
    if any(p.suffix == ".distcp" for p in children):
        raise TrajectoryError(
            f"{folder} is a sharded checkpoint of torch.distributed.checkpoint: convert it with "
            "torch.distributed.checkpoint.format_utils.dcp_to_torch_save."
        )
    indexed = {p.name.removesuffix(INDEX) for p in children if p.name.endswith(INDEX)}
    files = [p for p in children if p.is_file() and _counts(p) and not (indexed and _SHARD.search(p.name))]
    if model_file(folder) is not None:
        files = []
    return [*files, *(p for p in children if p.is_dir() and model_file(p) is not None)]


def _counts(path: Path) -> int:
    """1 where a file's name is that of a checkpoint of its own, else 0."""
    if path.name.endswith(INDEX):
        return 1
    beside = _BESIDE.fullmatch(path.name) or path.name in OPTIMIZER_FILES
    return int(path.suffix in SUFFIXES and not beside and not path.name.startswith("."))


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise TrajectoryError(f"cannot read the folder {folder} ({error.strerror}): make it readable.") from error
