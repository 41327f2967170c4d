"""Figures, tables and the page; the only place with matplotlib."""
