"""geomtraj: see how an optimizer shapes the terrain that its own trajectory runs through."""

from geomtraj import losses
from geomtraj._version import __version__
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
from geomtraj.statistics import RMed, Statistic, r_med
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
