"""What an optimizer divides its gradient by, and the curvature at which it becomes unstable, from its stored state.

On a quadratic with its preconditioner P held fixed, an optimizer's steps stay bounded up to where the recursion has the
root z = -1. With momentum b and learning rate lr that is a preconditioned sharpness lambda_1(P^-1/2 H P^-1/2) of

    heavy ball      m' = b m + g,            theta' = theta - lr m'                 2 (1 + b) / lr
    Nesterov        m' = b m + g,            theta' = theta - lr (g + b m')         2 (1 + b) / ((1 + 2 b) lr)
    averaged        m' = b m + (1 - b) g,    theta' = theta - lr m'                 2 (1 + b) / ((1 - b) lr)
    both            m' = b m + (1 - b) g,    theta' = theta - lr ((1 - b) g + b m') 2 (1 + b) / ((1 - b) (1 + 2 b) lr)

b = 0 gives 2 / lr, Adam's b = 0.9 gives 38 / lr. Weight decay w that the optimizer adds to the gradient without
preconditioner takes w off; decoupled decay, theta' = (1 - lr w) theta - ..., puts 2 / lr - w in the place of 2 / lr.

Where groups have different thresholds T_i, the boundary of them all is lambda_1((T P)^-1/2 H (T P)^-1/2) = 1, so that
P_i T_i / T serves as preconditioner for the common threshold T.

Source: Cohen et al. (2022), arXiv 2207.14484, section 3 and appendix; the roots by hand from the recursions above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.operators.base import SymmetricOperator

State = Mapping[str, Any]


@dataclass(frozen=True)
class Scale:
    """The preconditioner of one parameter.

    Attributes:
        gain: What it multiplies a gradient by: P^-1 of the parameter's shape, or for a matrix preconditioner its
            eigenvalues (n,).
        basis: Eigenvectors (n, n) of a matrix preconditioner, else None.
        left: Whether that acts on the rows of the parameter.
    """

    gain: Tensor
    basis: Tensor | None = None
    left: bool = True

    def half(self, factor: float) -> Scale:
        """(P^-1 factor)^(1/2)."""
        return Scale((self.gain * factor).sqrt(), self.basis, self.left)

    def apply(self, tensors: Tensor) -> Tensor:
        """Its product with tensors (k, *shape)."""
        if self.basis is None:
            return self.gain * tensors
        matrix = self.basis @ (self.gain[:, None] * self.basis.T)
        return matrix @ tensors if self.left else tensors @ matrix


class Unknown(InputError):
    """An optimizer has no preconditioner that is known, or none yet."""


def _momentum(c: float, lr: float, decay: float = 0.0, decoupled: bool = False) -> float:
    """The threshold c / lr, with weight decay."""
    return c * (1 / lr - decay / 2) if decoupled else c / lr - decay


def heavy(b: float) -> float:
    """Lr times the threshold with momentum m' = b m + g."""
    return 2 * (1 + b)


def averaged(b: float) -> float:
    """Lr times the threshold with momentum m' = b m + (1 - b) g."""
    return 2 * (1 + b) / (1 - b)


def nesterov(c: float, b: float) -> float:
    """The same with Nesterov's look ahead."""
    return c / (1 + 2 * b)


def _sgd(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    b, damp = s.get("momentum", 0.0), s.get("dampening", 0.0)
    c = heavy(b) / (1 - damp) if b else 2.0
    c = nesterov(c, b) if s.get("nesterov") else c
    return Scale(torch.ones_like(value)), _momentum(c, s["lr"], s.get("weight_decay", 0.0))


def _adam(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    b1, b2 = s["betas"]
    second = state["max_exp_avg_sq"] if s.get("amsgrad") else state["exp_avg_sq"]
    root = (second / (1 - b2 ** float(state["step"]))).sqrt() + s["eps"]
    return Scale(1 / root), _momentum(averaged(b1), s["lr"], *_decoupled(s, s.get("decoupled_weight_decay", False)))


def _adamw(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    return _adam({**s, "decoupled_weight_decay": True}, state, value)


def _nadam(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    b1, b2 = s["betas"]
    step = float(state["step"])
    b = b1 * (1 - 0.5 * 0.96 ** ((step + 1) * s["momentum_decay"]))
    root = (state["exp_avg_sq"] / (1 - b2**step)).sqrt() + s["eps"]
    c = nesterov(averaged(b), b)
    return Scale(1 / root), _momentum(c, s["lr"], *_decoupled(s, s.get("decoupled_weight_decay", False)))


def _radam(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    b1, b2 = s["betas"]
    step = float(state["step"])
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * step * b2**step / (1 - b2**step)
    gain = torch.ones_like(value)
    if length > 5:
        top = (length - 4) * (length - 2) * longest
        rectified = math.sqrt(top / ((longest - 4) * (longest - 2) * length))
        gain = rectified * math.sqrt(1 - b2**step) / (state["exp_avg_sq"].sqrt() + s["eps"])
    decay = _decoupled(s, s.get("decoupled_weight_decay", False))
    return Scale(gain), _momentum(averaged(b1), s["lr"], *decay)


def _adamax(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    return Scale(1 / state["exp_inf"]), _momentum(averaged(s["betas"][0]), s["lr"])


def _rmsprop(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    second = state["square_avg"]
    if s.get("centered"):
        second = second - state["grad_avg"].square()
    return Scale(1 / (second.sqrt() + s["eps"])), _momentum(heavy(s.get("momentum", 0.0)), s["lr"])


def _adagrad(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    rate = s["lr"] / (1 + float(state["step"]) * s.get("lr_decay", 0.0))
    return Scale(1 / (state["sum"].sqrt() + s["eps"])), 2 / rate


def _adadelta(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    eps = s["eps"]
    return Scale((state["acc_delta"] + eps).sqrt() / (state["square_avg"] + eps).sqrt()), 2 / s["lr"]


def _asgd(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    return Scale(torch.ones_like(value)), 2 / float(state["eta"]) - s["lambd"]


def _muon(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    """U diag(f(s / |M|) / s) U', with M = U s V' the momentum and f the iteration that takes singular values to 1."""
    M = state["momentum_buffer"].double()
    if M.shape[0] <= M.shape[1]:
        left, gram = True, M @ M.T
    else:
        left, gram = False, M.T @ M
    squares, basis = torch.linalg.eigh(gram)
    norm = float(M.norm().clamp(min=s["eps"]))
    small = squares.clamp(min=(1e-7 * norm) ** 2).sqrt() / norm
    found = small
    a, b, c = s["ns_coefficients"]
    for _ in range(s["ns_steps"]):
        found = found * (a + b * found**2 + c * found**4)
    rows, columns = M.shape
    adjusted = s.get("adjust_lr_fn") == "match_rms_adamw"
    ratio = 0.2 * math.sqrt(max(rows, columns)) if adjusted else math.sqrt(max(1.0, rows / columns))
    momentum = s["momentum"]
    c1 = averaged(momentum)
    c1 = nesterov(c1, momentum) if s.get("nesterov") else c1
    gain = ratio * found.abs() / (small * norm)
    # The decay is not scaled by the ratio, so that it meets the plain learning rate.
    return Scale(gain, basis, left), _momentum(c1, s["lr"], s.get("weight_decay", 0.0), True)


def _muon_with_adamw(s: State, state: State, value: Tensor) -> tuple[Scale, float]:
    return (_muon if "ns_steps" in s else _adamw)(s, state, value)


def _decoupled(s: State, decoupled: bool) -> tuple[float, bool]:
    """Weight decay as it enters the threshold: one that is added before the preconditioner does not."""
    return (s.get("weight_decay", 0.0), True) if decoupled else (0.0, False)


KNOWN: dict[str, Callable[[State, State, Tensor], tuple[Scale, float]]] = {
    "SGD": _sgd,
    "Adam": _adam,
    "AdamW": _adamw,
    "NAdam": _nadam,
    "RAdam": _radam,
    "Adamax": _adamax,
    "RMSprop": _rmsprop,
    "Adagrad": _adagrad,
    "Adadelta": _adadelta,
    "ASGD": _asgd,
    "Muon": _muon,
    "MuonWithAdamW": _muon_with_adamw,
}
"""Class name -> settings, state of a parameter, its value -> its preconditioner and threshold."""


def preconditioned(H: SymmetricOperator, groups: list[Any], theta: Tensor) -> tuple[SymmetricOperator, float]:
    """P^-1/2 H P^-1/2 as the optimizers' groups have it, and its threshold.

    Args:
        H: The Hessian of the problem's parameters.
        groups: `kind`, `settings` and `state` by parameter of each group (`geomtraj.updates.GroupState`).
        theta: The parameters, shape (P,).

    Raises:
        Unknown: A class is not known, has no state yet, or climbs.
    """
    scales: dict[str, Scale] = {}
    thresholds: dict[str, float] = {}
    values = H.layout.unflatten(theta)
    for group in groups:
        if group.kind not in KNOWN:
            raise Unknown(f"no preconditioner is known of {group.kind}: there are {', '.join(KNOWN)}.")
        if group.settings.get("maximize"):
            raise Unknown(f"{group.kind} maximizes: it has no edge of stability where it goes down.")
        for name in (n for n in group.names if n in values):
            state = group.state.get(name, {})
            if not state and group.kind != "SGD":
                continue
            moved = {k: v.to(theta.device) if isinstance(v, Tensor) else v for k, v in state.items()}
            try:
                scales[name], thresholds[name] = KNOWN[group.kind](group.settings, moved, values[name])
            except (KeyError, ZeroDivisionError) as error:
                raise Unknown(f"the state of {group.kind} lacks {error}: it is of another version.") from error
    if not scales:
        raise Unknown("the optimizer has no state yet: no step was taken before this iterate.")
    sizes: dict[float, int] = {}
    for name, threshold in thresholds.items():
        sizes[threshold] = sizes.get(threshold, 0) + H.layout[name].size
    common = max(sizes, key=lambda threshold: sizes[threshold])
    halves = {name: scale.half(common / thresholds[name]) for name, scale in scales.items()}
    if not all(torch.isfinite(h.gain).all() for h in halves.values()):
        raise Unknown("the preconditioner has zeros: some second moments are zero and eps is.")
    return _Scaled(H, halves), common


class _Scaled(SymmetricOperator):
    """S H S with a symmetric S that acts on each parameter; those without one do not move."""

    def __init__(self, operator: SymmetricOperator, halves: dict[str, Scale]):
        super().__init__(operator.layout, operator.dtype, operator.device, operator.blocks)
        self._operator = operator
        self._halves = {
            name: Scale(half.gain.to(self.dtype), None if half.basis is None else half.basis.to(self.dtype), half.left)
            for name, half in halves.items()
        }

    def _matmat(self, vectors: Tensor) -> Tensor:
        return self._half(self._operator @ self._half(vectors))

    def _half(self, vectors: Tensor) -> Tensor:
        found = torch.zeros_like(vectors)
        for name, half in self._halves.items():
            slot = self.layout[name]
            tensors = vectors[slot.slice].T.reshape(-1, *slot.shape)
            found[slot.slice] = half.apply(tensors).reshape(vectors.shape[1], -1).T
        return found
