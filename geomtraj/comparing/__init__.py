"""Contrasts between optimizers: pairing of their runs, and statistics over seeds."""

from geomtraj.contrast.api import contrast
from geomtraj.contrast.primary import Comparison
from geomtraj.contrast.row import Row
from geomtraj.contrast.table import Table

__all__ = ["Comparison", "Row", "Table", "contrast"]
