"""Built-in problems: real text, images, closed-form ones."""

from __future__ import annotations

from typing import Any

from geomtraj.errors import unknown_name
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
    if name not in REGISTRY:
        raise unknown_name("task", str(name), REGISTRY)
    return REGISTRY[name](**options)


__all__ = ["Task", "make", "names", "two_layer_linear"]
