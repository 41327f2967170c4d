"""Measuring the iterates of a trajectory, and the stored results."""

from geomtraj.measuring.results import Measurement, Results
from geomtraj.measuring.run import measure

__all__ = ["Measurement", "Results", "measure"]
