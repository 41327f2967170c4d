"""Contrasts between optimizers: pairing of their runs, and statistics over seeds."""

from geomtraj.comparing.api import contrast
from geomtraj.comparing.primary import Comparison
from geomtraj.comparing.row import Row
from geomtraj.comparing.table import Table

__all__ = ["Comparison", "Row", "Table", "contrast"]
