"""Strategies of multiplying by a Hessian or a Gauss-Newton matrix, each in a file; all pass the same tests."""

from __future__ import annotations

from geomtraj.operators.hvp.base import Curvature, Strategy
from geomtraj.operators.hvp.compiled import Compiled
from geomtraj.operators.hvp.double_backward import DoubleBackward
from geomtraj.operators.hvp.double_backward_fresh import DoubleBackwardFresh
from geomtraj.operators.hvp.finite_differences import FiniteDifferences
from geomtraj.operators.hvp.forward_over_reverse import ForwardOverReverse
from geomtraj.operators.hvp.linearized import LinearizedDoubleBackward, LinearizedForwardOverReverse

STRATEGIES: dict[str, type[Strategy]] = {
    "double-backward": DoubleBackward,
    "double-backward-fresh": DoubleBackwardFresh,
    "forward-over-reverse": ForwardOverReverse,
    "linearized-double-backward": LinearizedDoubleBackward,
    "linearized-forward-over-reverse": LinearizedForwardOverReverse,
    "compiled": Compiled,
    "finite-differences": FiniteDifferences,
}
OLD_NAMES = {
    "kept": "double-backward",
    "fresh": "double-backward-fresh",
    "forward": "forward-over-reverse",
    "linearized-reverse": "linearized-double-backward",
    "linearized-forward": "linearized-forward-over-reverse",
    "differences": "finite-differences",
}
"""What strategies were called before; still taken."""

__all__ = ["OLD_NAMES", "STRATEGIES", "Curvature", "Strategy", "name_of"]


def name_of(made: Strategy) -> str:
    """The strategy's name."""
    return next(name for name, kind in STRATEGIES.items() if kind is type(made))
