"""The Hessian diagonal and its error bars."""

from geomtraj.diagonal.api import EXACT_UP_TO, diagonal
from geomtraj.diagonal.base import Cost, Diagonal, Part
from geomtraj.diagonal.exact import entries

__all__ = ["EXACT_UP_TO", "Cost", "Diagonal", "Part", "diagonal", "entries"]
