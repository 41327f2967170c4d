"""Contrasts between optimizers: pairing of their runs, and statistics over seeds."""

from geomtraj.contrast.api import contrast
from geomtraj.contrast.table import Row, Table

__all__ = ["Row", "Table", "contrast"]
