"""The Hessian diagonal and its error bars."""

from geomtraj.diagonals.api import EXACT_UP_TO, diagonal
from geomtraj.diagonals.base import Cost, Diagonal, Part
from geomtraj.diagonals.exact import entries

__all__ = ["EXACT_UP_TO", "Cost", "Diagonal", "Part", "diagonal", "entries"]
