"""geomtraj: see how an optimizer shapes the terrain that its own trajectory runs through."""

from geomtraj._version import __version__
from geomtraj.operators import GGN, Hessian, MatrixOperator, Preconditioned
from geomtraj.problem import Problem

__all__ = ["GGN", "Hessian", "MatrixOperator", "Preconditioned", "Problem", "__version__"]
