"""geomtraj: see how an optimizer shapes the terrain that its own trajectory runs through."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from geomtraj._version import __version__

if TYPE_CHECKING:
    from geomtraj import losses
    from geomtraj.comparing import Table, contrast
    from geomtraj.curvature import eigsh, spectral_density, spectrum, trace
    from geomtraj.diagonals import Diagonal, diagonal
    from geomtraj.distributed import shard
    from geomtraj.errors import ComputationError, GeomtrajError, GeomtrajWarning, InputError, TrajectoryError
    from geomtraj.linalg import Eigenpairs, Estimate, SpectralDensity, Spectrum
    from geomtraj.measuring import Measurement, Results, measure
    from geomtraj.operators import GGN, Hessian, MatrixOperator, Preconditioned
    from geomtraj.problem import Problem
    from geomtraj.registering import register
    from geomtraj.reporting import plot, report
    from geomtraj.splitting import join, split
    from geomtraj.statistics import REGISTRY as STATISTICS
    from geomtraj.statistics import RMed, Statistic
    from geomtraj.statistics.r_med import r_med
    from geomtraj.trajectory import Iterate, Recorder, Trajectory, at, either, every, log_spaced
    from geomtraj.updates import next_update

__all__ = [
    "GGN",
    "STATISTICS",
    "ComputationError",
    "Diagonal",
    "Eigenpairs",
    "Estimate",
    "GeomtrajError",
    "GeomtrajWarning",
    "Hessian",
    "InputError",
    "Iterate",
    "MatrixOperator",
    "Measurement",
    "Preconditioned",
    "Problem",
    "RMed",
    "Recorder",
    "Results",
    "SpectralDensity",
    "Spectrum",
    "Statistic",
    "Table",
    "Trajectory",
    "TrajectoryError",
    "__version__",
    "at",
    "contrast",
    "diagonal",
    "eigsh",
    "either",
    "every",
    "join",
    "log_spaced",
    "losses",
    "measure",
    "next_update",
    "plot",
    "r_med",
    "register",
    "report",
    "shard",
    "spectral_density",
    "spectrum",
    "split",
    "trace",
]

_HOMES = {
    "geomtraj.comparing": ("Table", "contrast"),
    "geomtraj.curvature": ("eigsh", "spectral_density", "spectrum", "trace"),
    "geomtraj.diagonals": ("Diagonal", "diagonal"),
    "geomtraj.distributed": ("shard",),
    "geomtraj.errors": ("ComputationError", "GeomtrajError", "GeomtrajWarning", "InputError", "TrajectoryError"),
    "geomtraj.linalg": ("Eigenpairs", "Estimate", "SpectralDensity", "Spectrum"),
    "geomtraj.measuring": ("Measurement", "Results", "measure"),
    "geomtraj.operators": ("GGN", "Hessian", "MatrixOperator", "Preconditioned"),
    "geomtraj.problem": ("Problem",),
    "geomtraj.registering": ("register",),
    "geomtraj.reporting": ("report",),
    "geomtraj.splitting": ("join", "split"),
    "geomtraj.statistics": ("STATISTICS", "RMed", "Statistic", "r_med"),
    "geomtraj.trajectory": ("Iterate", "Recorder", "Trajectory", "at", "either", "every", "log_spaced"),
    "geomtraj.updates": ("next_update",),
}
_RENAMED = {"STATISTICS": "REGISTRY"}
_MODULES = {"losses": "geomtraj.losses", "plot": "geomtraj.reporting.plot"}
_PLACES = {name: home for home, names in _HOMES.items() for name in names} | _MODULES


def __getattr__(name: str) -> Any:
    """A public name, imported where it is first used, or a module of geomtraj."""
    if name in _PLACES:
        place = importlib.import_module(_PLACES[name])
        found = place if name in _MODULES else getattr(place, _RENAMED.get(name, name))
        globals()[name] = found
        return found
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, whether they are imported already or not."""
    return sorted({*globals(), *__all__})
