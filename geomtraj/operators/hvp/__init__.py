"""The ways of multiplying by a Hessian, each in a file of its own; all pass the same tests."""

from __future__ import annotations

from geomtraj.operators.hvp.base import Way
from geomtraj.operators.hvp.compiled import Compiled
from geomtraj.operators.hvp.double_backward import Kept
from geomtraj.operators.hvp.double_backward_fresh import Fresh
from geomtraj.operators.hvp.finite_differences import Differences
from geomtraj.operators.hvp.forward_over_reverse import Forward
from geomtraj.operators.hvp.linearized import LinearizedForward, LinearizedReverse

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
