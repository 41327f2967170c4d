"""Code from outside the package: what other distributions announce, and files and modules that a user names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from geomtraj.errors import GeomtrajError, GeomtrajWarning, InputError

PREFIX = "geomtraj."
"""Groups of entry points: geomtraj.statistics, geomtraj.tasks, geomtraj.optimizers."""

_LOADED: dict[tuple[str, str], Any] = {}


def announced(group: str) -> dict[str, Any]:
    """What installed distributions announce in a group of entry points, by name.

    One that cannot be imported is left out with a warning.

    Args:
        group: "statistics", "tasks" or "optimizers".
    """
    found = {}
    for point in metadata.entry_points(group=PREFIX + group):
        known = (group, point.value)
        if known not in _LOADED:
            try:
                _LOADED[known] = point.load()
            except Exception as error:  # whatever other people's code raises at its import
                _LOADED[known] = None
                package = point.dist.name if point.dist is not None else "a package"
                warnings.warn(
                    f"{point.value}, which {package} announces as {PREFIX}{group}, cannot be imported "
                    f"({type(error).__name__}: {error}): it is left out.",
                    GeomtrajWarning,
                    stacklevel=3,
                )
        if _LOADED[known] is not None:
            found[point.name] = _LOADED[known]
    return found


def imported(text: str) -> ModuleType:
    """The module in a file, or of a dotted name; modules in the current folder are found too.

    Worker processes get a file's code sent along.

    Raises:
        InputError: There is none, or it raises an error.
    """
    try:
        if text.endswith(".py") or "/" in text:
            return _from_file(Path(text))
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        return importlib.import_module(text)
    except GeomtrajError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (text == error.name or text.startswith(f"{error.name}.")):
            raise InputError(
                f"there is no module {text}: name a file (mine.py) or a module that is installed."
            ) from None
        raise InputError(f"{text} cannot be imported (ModuleNotFoundError: {error}): install what it needs.") from error
    except Exception as error:
        raise InputError(f"{text} cannot be imported ({type(error).__name__}: {error}): correct it.") from error


def named(text: str) -> Any:
    """What FILE:NAME or MODULE:NAME names.

    Raises:
        InputError: There is no such file, module or name.
    """
    place, colon, name = text.rpartition(":")
    if not (colon and place and name):
        raise InputError(f"{text!r} names nothing: write FILE:NAME or MODULE:NAME, such as mine.py:problem.")
    module = imported(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = ", ".join(n for n in vars(module) if not n.startswith("_"))[:200]
            raise InputError(f"{place} has no {name}: there are {public or 'no names at all'}.")
        found = getattr(found, part)
    return found


def defined_in(module: ModuleType, kinds: tuple[type, ...]) -> Iterator[type]:
    """The classes that a module defines itself, of these kinds."""
    for value in list(vars(module).values()):
        if isinstance(value, type) and issubclass(value, kinds) and value.__module__ == module.__name__:
            yield value


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise InputError(f"there is no file {path}: give the path of a Python file.")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or not name.isidentifier():
        name = f"geomtraj_plugin_{abs(hash(str(path))):x}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is no Python file: give one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)
    return module
