"""Entries of a diagonal known with noise, some of them exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MANY = 1e6
"""Degrees of freedom from which on Student's t is taken for normal."""


@dataclass(frozen=True)
class Entries:
    """Noisy entries of a diagonal, and what is known of them exactly. All arrays are (N,).

    Attributes:
        values: Estimates y_i of the entries d_i.
        sem: Their standard errors s_i.
        rows: Number of the row of the parameter tensor, whose errors may be correlated.
        exact: d_i where measured, NaN elsewhere.
        blocks: Number of the block; blocks are distributed each in its own way.
        dof: Degrees of freedom of s_i.
    """

    values: np.ndarray
    sem: np.ndarray
    rows: np.ndarray
    exact: np.ndarray
    blocks: np.ndarray
    dof: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which entries are known without error."""
        return ~np.isnan(self.exact) | (self.sem == 0)

    @property
    def best(self) -> np.ndarray:
        """The exact entries where measured, the estimates elsewhere."""
        return np.where(np.isnan(self.exact), self.values, self.exact)

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of `best`."""
        return np.where(np.isnan(self.exact), self.sem, 0.0)

    def take(self, indices: np.ndarray | slice) -> Entries:
        """Some of the entries."""
        return Entries(
            self.values[indices],
            self.sem[indices],
            self.rows[indices],
            self.exact[indices],
            self.blocks[indices],
            self.dof[indices],
        )

    def reach(self, z: float) -> np.ndarray:
        """How far an entry may lie from its best estimate (N,), at the level that z standard errors have if normal."""
        return self.errors * student(z, self.dof)


def student(z: np.ndarray | float, dof: np.ndarray) -> np.ndarray:
    """The value of Student's t at the level of the standard normal z, to a few per mille from 4 degrees of freedom on.

    With fewer it lies further out: 4 % at z = 1.96 and 2 degrees.

    Source: Wallace (1959), "Bounds on normal approximations to Student's and the chi-square distributions".
    """
    dof = np.clip(dof, 1, MANY)
    with np.errstate(over="ignore"):
        return np.sign(z) * np.sqrt(dof * np.expm1(np.square(z * (8 * dof + 3) / (8 * dof + 1)) / dof))


def normal(t: np.ndarray, dof: np.ndarray) -> np.ndarray:
    """The standard normal value at the level of Student's t: the inverse of `student`."""
    dof = np.clip(dof, 1, MANY)
    with np.errstate(over="ignore"):
        return np.sign(t) * (8 * dof + 1) / (8 * dof + 3) * np.sqrt(dof * np.log1p(np.square(t) / dof))


def exactly(values: np.ndarray) -> Entries:
    """Entries (N,) without error."""
    number = np.arange(values.size)
    return Entries(values, np.zeros(values.size), number, values, 0 * number, np.full(values.size, np.inf))
