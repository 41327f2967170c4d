"""A curvature matrix seen in an optimizer's rescaled coordinates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.operators.base import SymmetricOperator


class Preconditioned(SymmetricOperator):
    """The matrix diag(s) H diag(s), whose eigenvalues are those of H in the coordinates theta = diag(s) phi.

    For an optimizer that divides its step by P = sqrt(v_hat) + eps, s = P^(-1/2) gives the preconditioned Hessian
    P^(-1/2) H P^(-1/2); its top eigenvalue is the preconditioned sharpness.

    Args:
        operator: Any symmetric operator H; its `matvecs` counts these products too.
        scale: The factors s, all positive and finite: a tensor (P,), or one tensor for each parameter name.

    Raises:
        InputError: The scale does not fit the operator, or an entry is not positive and finite.

    Source: Cohen et al. (2022), "Adaptive gradient methods at the edge of stability", arXiv 2207.14484, section 3.
    """

    def __init__(self, operator: SymmetricOperator, scale: Tensor | Mapping[str, Tensor]):
        super().__init__(operator.layout, operator.dtype, operator.device, operator.blocks)
        if isinstance(scale, Mapping):
            missing = [name for name in operator.layout if name not in scale]
            if missing:
                raise InputError(f"the scale lacks {missing[0]!r}: give a tensor for each parameter name.")
            for name, slot in operator.layout.items():
                if tuple(scale[name].shape) != slot.shape:
                    raise InputError(
                        f"the scale of {name!r} has shape {tuple(scale[name].shape)}: it must be {slot.shape}."
                    )
            scale = operator.layout.flatten(scale)
        if scale.shape != (operator.layout.size,):
            raise InputError(f"the scale has shape {tuple(scale.shape)}: it must be ({operator.layout.size},).")
        scale = scale.detach().to(self.device, self.dtype)
        bad = ~(torch.isfinite(scale) & (scale > 0))
        if bad.any():
            raise InputError(
                f"{int(bad.sum())} entries of the scale are not positive and finite: add eps before dividing."
            )
        self._operator = operator
        self._scale = scale[:, None]

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._scale * (self._operator @ (self._scale * vectors))
