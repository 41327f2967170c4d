"""Safetensors files, and models that are cut into several files by an index."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from geomtraj.errors import TrajectoryError
from geomtraj.trajectory.checkpoints.torch_files import cannot_open, is_zip, unreadable
from geomtraj.trajectory.files import read_json

INDEX = ".index.json"


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name.

    Raises:
        DamagedFile: It is cut short or altered.
        TrajectoryError: It cannot be opened.
    """
    return _opened(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    """What a file says of itself beside its tensors; errors as for `load_safetensors`."""
    return _opened(path, lambda file: file.metadata() or {})


def load_index(path: Path, load: Callable[[Path], Any]) -> dict[str, Tensor]:
    """The tensors of a model that is cut into several files.

    Args:
        path: The index, which says in which file beside it each tensor stands.
        load: Reads one of the files.

    Raises:
        DamagedFile: A file lacks a tensor that the index names, or is damaged.
        TrajectoryError: The index is damaged, names files elsewhere, or a file is missing.
    """
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise unreadable(path, "it has no weight_map of names and files")
    found: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard or shard in (".", ".."):
            raise TrajectoryError(f"{path} names the file {shard!r}, which is not beside it: put its files there.")
        held = load(path.parent / shard)
        wanted = [name for name, place in places.items() if place == shard]
        missing = [name for name in wanted if not isinstance(held, Mapping) or name not in held]
        if missing:
            raise unreadable(path.parent / shard, f"it lacks {', '.join(missing[:5])}, which {path.name} says it has")
        found |= {name: held[name] for name in wanted}
    return found


def _opened(path: Path, act: Callable[[Any], Any]) -> Any:
    from safetensors import SafetensorError, safe_open  # as late as the first such file

    is_zip(path)  # that it can be opened, and is a regular file
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return act(file)
    except SafetensorError as error:
        raise unreadable(path, error) from error
    except OSError as error:
        raise cannot_open(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, json.JSONDecodeError) as error:
        raise unreadable(path, error) from error
