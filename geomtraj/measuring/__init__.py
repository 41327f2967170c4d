"""Measuring the iterates of a trajectory, and the stored results."""

from geomtraj.measuring.checks import check_results, repair_results
from geomtraj.measuring.record import Measurement
from geomtraj.measuring.results import Results
from geomtraj.measuring.run import measure

__all__ = ["Measurement", "Results", "check_results", "measure", "repair_results"]
