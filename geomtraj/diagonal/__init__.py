"""The Hessian diagonal and its error bars."""

from geomtraj.diagonal.api import diagonal
from geomtraj.diagonal.base import Cost, Diagonal
from geomtraj.diagonal.exact import entries

__all__ = ["Cost", "Diagonal", "diagonal", "entries"]
