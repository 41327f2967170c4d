"""Contrasts between optimizers: pairing of their runs, and statistics over seeds."""

from geomtraj.comparing.alignment import run_name
from geomtraj.comparing.api import contrast
from geomtraj.comparing.by_pair import PairRatio, mean_ratios, pair_ratios
from geomtraj.comparing.matrices import is_matrix, shapes_of
from geomtraj.comparing.primary import Comparison
from geomtraj.comparing.row import Row
from geomtraj.comparing.table import Table

__all__ = [
    "Comparison", "PairRatio", "Row", "Table", "contrast", "is_matrix", "mean_ratios", "pair_ratios", "run_name",
    "shapes_of",
]  # fmt: skip
