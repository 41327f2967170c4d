"""What a built-in task is: a model, unreduced losses, a training stream and a fixed evaluation set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from geomtraj.errors import InputError, unknown_name
from geomtraj.problem import Problem
from geomtraj.seeding import generator

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Task(ABC):
    """A training problem that is a pure function of its options and seeds.

    A subclass lists its options with their defaults in `defaults`, next to those that all tasks have, and defines
    `build`, `batch`, `evaluation` and the static `loss`. A default's type is the type that the option must have;
    None stands for text or None.

    Args:
        **options: Values of some options; the others take their defaults.

    Raises:
        InputError: An unknown option, or a value of the wrong type or range.

    Attributes:
        name: The name in the registry.
        options: Every option with its value, as JSON can hold it.
        default_steps: Optimizer steps of a usual training run.
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}
    default_steps: ClassVar[int]

    def __init__(self, **options: Any):
        known = {"device": "cpu", "dtype": "float32", **self.defaults}
        for option, value in options.items():
            if option not in known:
                raise unknown_name(f"option of task {self.name}", option, known)
            known[option] = _checked(self.name, option, value, known[option])
        if known["dtype"] not in DTYPES:
            raise unknown_name("dtype", known["dtype"], DTYPES)
        self.options: dict[str, Any] = known
        self.dtype = DTYPES[known["dtype"]]
        self.device = _device(known["device"])

    @property
    def default_batch_size(self) -> int | None:
        """Examples in a training batch; None where every batch holds all of them."""
        return self.options.get("batch_size")

    def model(self, seed: int) -> nn.Module:
        """The network with its initial parameters drawn from the seed; global generators stay untouched."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(seed, f"initial {self.name}").initial_seed())
            model = self.build()
        return model.to(device=self.device, dtype=self.dtype)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, its parameters drawn from torch's global CPU generator."""

    @staticmethod
    @abstractmethod
    def loss(model: nn.Module, batch: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Unreduced losses of the batch, or (losses, weights); the first axis counts examples, further ones tokens."""

    @abstractmethod
    def batch(self, step: int, seed: int) -> Any:
        """The training batch of step `step` (from 0): a function of step and seed alone."""

    @abstractmethod
    def evaluation(self) -> list[Any]:
        """The fixed evaluation set in micro-batches: what losses and curvature are measured on."""

    def problem(self, model: nn.Module, params: str | Iterable[str] | None = None, *, blocks: Any = None) -> Problem:
        """The evaluation loss of the model as a `Problem`; `params` and `blocks` as there."""
        return Problem(model, self.loss, self.evaluation(), params, blocks=blocks)

    def random_rows(self, rows: int, step: int, seed: int) -> Tensor:
        """Positions, shape (batch_size,), drawn for one training batch out of `rows`, with replacement."""
        rng = generator(seed, f"batch {step} of {self.name}")
        return torch.randint(rows, (self.options["batch_size"],), generator=rng)

    def __reduce__(self) -> tuple[Any, ...]:
        return _remake, (type(self), self.options)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


def _remake(kind: type[Task], options: dict[str, Any]) -> Task:
    return kind(**options)


def _checked(task: str, option: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        good, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, int):
        whole = isinstance(value, int) and not isinstance(value, bool)
        least = min(default, 1)
        good, wanted = whole and value >= least, f"a whole number of at least {least}"
    elif isinstance(default, float):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        wanted = "a positive number"
        value = float(value) if good else value
    elif default is None:
        good, wanted = value is None or isinstance(value, str) or hasattr(value, "__fspath__"), "a path"
        value = value if value is None else str(value)
    else:
        value = str(value) if isinstance(value, (torch.device, torch.dtype)) else value
        value = value.removeprefix("torch.") if isinstance(value, str) else value
        good, wanted = isinstance(value, str), "text"
    if not good:
        raise InputError(f"option {option} of task {task} must be {wanted}, not {value!r}.")
    return value


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {name!r}: use 'cpu' or 'cuda'.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for, but torch sees no CUDA GPU here: use device='cpu'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"there is no {name!r}: this machine has {torch.cuda.device_count()} CUDA GPUs.")
    return device
