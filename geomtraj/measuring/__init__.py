"""Measuring the iterates of a trajectory, and the stored results."""

from geomtraj.measuring.checks import Checked, check_results
from geomtraj.measuring.record import Measurement
from geomtraj.measuring.results import Results
from geomtraj.measuring.run import measure

__all__ = ["Checked", "Measurement", "Results", "check_results", "measure"]
