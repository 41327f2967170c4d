"""Runs the command line: python -m geomtraj."""

from geomtraj.cli import main

main()
