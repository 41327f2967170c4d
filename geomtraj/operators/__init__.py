"""Curvature matrices as symmetric linear operators, known by their products with vectors."""

from geomtraj.operators.base import SymmetricOperator
from geomtraj.operators.ggn import GGN
from geomtraj.operators.guard import Guard, check_derivatives, with_remark
from geomtraj.operators.hessian import Hessian
from geomtraj.operators.matrix import MatrixOperator
from geomtraj.operators.preconditioned import Preconditioned

__all__ = [
    "GGN",
    "Guard",
    "Hessian",
    "MatrixOperator",
    "Preconditioned",
    "SymmetricOperator",
    "check_derivatives",
    "with_remark",
]
