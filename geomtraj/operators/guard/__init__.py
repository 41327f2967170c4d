"""Second derivatives held against differences of gradients, before the first of them is used."""

from geomtraj.operators.guard.check import Guard, check_derivatives, check_gradient, with_remark

__all__ = ["Guard", "check_derivatives", "check_gradient", "with_remark"]
