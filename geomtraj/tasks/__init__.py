"""Built-in problems: real text, images, closed-form ones."""

from __future__ import annotations

from typing import Any

from geomtraj.errors import InputError, unknown_name
from geomtraj.plugins import announced
from geomtraj.tasks import two_layer_linear
from geomtraj.tasks.base import Task
from geomtraj.tasks.digits import DigitsCNN, DigitsMLP
from geomtraj.tasks.mnist import MNIST5kCNN
from geomtraj.tasks.pydoc_lm import PydocLM
from geomtraj.tasks.text_classification import TextClassification
from geomtraj.tasks.translation import Translation
from geomtraj.tasks.two_layer_linear import TwoLayerLinear

# A new task is one file and one entry here.
REGISTRY: dict[str, type[Task]] = {
    task.name: task
    for task in (PydocLM, TextClassification, Translation, TwoLayerLinear, DigitsCNN, DigitsMLP, MNIST5kCNN)
}


def names() -> list[str]:
    """The names of the built-in tasks."""
    return list(REGISTRY)


def make(name: str, **options: Any) -> Task:
    """The task of that name.

    Raises:
        InputError: Unknown task or option, or a value that cannot be used.
    """
    known = REGISTRY if name in REGISTRY else everything()
    if name not in known:
        raise unknown_name("task", str(name), known)
    return known[name](**options)


def add(cls: type[Task], name: str | None = None) -> None:
    """Make a task known by its name.

    Raises:
        InputError: It has no name, or the name is another's.
    """
    own = getattr(cls, "name", None)
    if not isinstance(own, str) or name not in (None, own):
        raise InputError(f"the task {cls.__name__} must say its name: write name = '...' in its class.")
    known = REGISTRY.get(own)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise InputError(f"there is a task {own!r} already ({known.__qualname__}): choose another name.")
    REGISTRY[own] = cls


def everything() -> dict[str, type[Task]]:
    """All tasks that there are, those that other packages announce too."""
    for cls in announced("tasks").values():
        if isinstance(cls, type) and issubclass(cls, Task) and cls.name not in REGISTRY:
            add(cls)
    return REGISTRY


__all__ = ["Task", "make", "names", "two_layer_linear"]
