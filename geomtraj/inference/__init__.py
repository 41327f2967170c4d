"""Statistics over seeds as pure functions of arrays: intervals, tests, rank correlation, regression, two-way tables."""

from geomtraj.inference.interval import CONFIDENCE, Interval, t_interval

__all__ = ["CONFIDENCE", "Interval", "t_interval"]
