"""The ways of multiplying by a Hessian, each in a file of its own; all pass the same tests."""

from __future__ import annotations

from geomtraj.operators.ways.base import Way
from geomtraj.operators.ways.compiled import Compiled
from geomtraj.operators.ways.differences import Differences
from geomtraj.operators.ways.forward import Forward
from geomtraj.operators.ways.fresh import Fresh
from geomtraj.operators.ways.kept import Kept
from geomtraj.operators.ways.linearized import LinearizedForward, LinearizedReverse

WAYS: dict[str, type[Way]] = {
    "kept": Kept,
    "fresh": Fresh,
    "forward": Forward,
    "linearized-forward": LinearizedForward,
    "linearized-reverse": LinearizedReverse,
    "compiled": Compiled,
    "differences": Differences,
}

__all__ = ["WAYS", "Way"]
