"""A checksum of the code of a statistic: its class, and the functions and constants of the user's own that it uses."""

from __future__ import annotations

import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

from geomtraj._version import __version__
from geomtraj.statistics import Statistic

TORCH = str(torch.__version__)
_PLAIN = (bool, int, float, str, bytes, type(None))


def code_of(statistic: Statistic) -> str:
    """A checksum of a statistic's code; empty for geomtraj's own, which its version names."""
    cls = type(statistic)
    return "" if _package(cls) == _package(Statistic) else _digest(_text(cls))


def failure_code(statistic: Statistic) -> str:
    """A checksum of what a failure may be due to: the statistic's code and the versions of geomtraj and torch."""
    return _digest(f"{_text(type(statistic))} {__version__} {TORCH}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


@lru_cache(maxsize=100)
def _text(cls: type) -> str:
    found: dict[str, str] = {}
    _collect(cls, found)
    return "\n".join(f"{name}: {found[name]}" for name in sorted(found))


def _collect(thing: Any, found: dict[str, str]) -> None:
    """Adds the text of a class or function, and of everything of the user's own that it names."""
    name = f"{thing.__module__}.{thing.__qualname__}"
    if name in found:
        return
    found[name] = _source(thing)
    for function in _functions(thing):
        names = _names(function.__code__)
        used = {name: function.__globals__[name] for name in names if name in function.__globals__}
        for module in [value for value in used.values() if isinstance(value, ModuleType)]:
            used |= {f"{module.__name__}.{n}": v for n, v in vars(module).items() if n in names}
        for name, value in used.items():
            if isinstance(value, _PLAIN):
                found[f"{function.__module__}: {name}"] = repr(value)
            elif isinstance(value, (type, FunctionType)) and _users(value):
                _collect(value, found)
    if isinstance(thing, type):
        for base in thing.__mro__[1:]:
            if _users(base):
                _collect(base, found)


def _functions(thing: Any) -> Iterator[FunctionType]:
    if isinstance(thing, FunctionType):
        yield thing
        return
    for value in vars(thing).values():
        value = getattr(value, "__func__", getattr(value, "fget", getattr(value, "func", value)))
        if isinstance(value, FunctionType):
            yield value


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def _source(thing: Any) -> str:
    """The source, or the instructions of what was typed into an interpreter."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return " ".join(f"{f.__code__.co_code.hex()} {f.__code__.co_consts!r}" for f in _functions(thing))


def _package(thing: Any) -> str:
    return thing.__module__.split(".")[0]


def _users(thing: Any) -> bool:
    """Whether a class or function is neither Python's, nor installed, nor geomtraj's."""
    module = sys.modules.get(thing.__module__)
    if _package(thing) == _package(Statistic) or module is None:
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        return thing.__module__ == "__main__"
    here = Path(file).resolve()
    return not any(here.is_relative_to(Path(path).resolve()) for path in _INSTALLED)


_INSTALLED = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
