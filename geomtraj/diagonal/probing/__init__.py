"""The diagonal by random signs, each example with its own."""

from geomtraj.diagonal.probing.estimate import probing

__all__ = ["probing"]
