"""`register`: statistics, tasks and optimizers of one's own, found by their names as the built-in ones are."""

from __future__ import annotations

from types import ModuleType
from typing import Any, TypeVar

from torch.optim import Optimizer

from geomtraj import plugins, statistics, tasks, updates
from geomtraj.errors import InputError
from geomtraj.statistics import Statistic
from geomtraj.tasks import Task
from geomtraj.training import optimizers
from geomtraj.training.optimizers import Entry

T = TypeVar("T")


def register(thing: T, name: str | None = None) -> T:
    """Make a statistic, a task or an optimizer known by its name, in Python and on the command line (`--plugin`).

    It may stand as a decorator before a class. Installed packages are found without it, by entry points of the groups
    `geomtraj.statistics`, `geomtraj.tasks` and `geomtraj.optimizers`.

    Args:
        thing: A subclass of `gt.Statistic` or of `geomtraj.tasks.Task`; a torch optimizer's class; or an
            `geomtraj.training.optimizers.Entry` with its usual settings.
        name: The name; left out, a statistic's or task's own, and an optimizer's class name in small letters.

    Returns:
        The same.

    Raises:
        InputError: It is none of these, lacks something, or the name is taken.
    """
    if isinstance(thing, type) and issubclass(thing, Statistic):
        statistics.add(thing, name)
    elif isinstance(thing, type) and issubclass(thing, Task):
        tasks.add(thing, name)
    elif isinstance(thing, Entry) or (isinstance(thing, type) and issubclass(thing, Optimizer)):
        entry = optimizers.add(thing, name)
        if entry.build is None:
            updates.register_optimizer(entry.function.__name__, lambda params: entry.function(params, lr=entry.lr))
    else:
        kind = thing.__name__ if isinstance(thing, type) else type(thing).__name__
        raise InputError(
            f"register takes a Statistic, a Task or an optimizer's class, not {kind}: derive yours from gt.Statistic, "
            "geomtraj.tasks.Task or torch.optim.Optimizer."
        )
    return thing


def register_all(text: str) -> ModuleType:
    """Import a file or module, and register the statistics, tasks and optimizers that it defines and did not itself.

    Raises:
        InputError: It cannot be imported, or a name is taken.
    """
    module = plugins.imported(text)
    for cls in plugins.defined_in(module, (Statistic, Task, Optimizer)):
        if not getattr(cls, "__abstractmethods__", None) and not _known(cls):
            register(cls)
    return module


def statistic(text: str) -> Statistic:
    """The statistic that MODULE:CLASS or FILE:CLASS names: a class, with its default settings, or an object.

    Raises:
        InputError: There is none.
    """
    found = plugins.named(text)
    if isinstance(found, type) and issubclass(found, Statistic):
        return statistics.checked(found)()
    if not isinstance(found, Statistic):
        raise InputError(f"{text} is a {type(found).__name__}: name a class derived from gt.Statistic.")
    return found


def _known(cls: Any) -> bool:
    registries: Any = (statistics.REGISTRY.values(), tasks.REGISTRY.values())
    entries = [entry.cls for entry in optimizers.REGISTRY.values()]
    return any(known is cls for registry in (*registries, entries) for known in registry)
