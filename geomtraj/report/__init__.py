"""Figures, tables and the page that answer the question; the only place with matplotlib."""

from geomtraj.report.api import report

__all__ = ["report"]
