"""R_med: the ratio itself, its interval by draws of the entries, and which entries are worth a product."""

from geomtraj.statistics.r_med.ratio import ALL, MedianConditionRatio, RMed, outcome_of, r_med

__all__ = ["ALL", "MedianConditionRatio", "RMed", "outcome_of", "r_med"]
