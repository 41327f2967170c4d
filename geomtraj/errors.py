"""The errors that geomtraj raises: each message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeomtrajError(Exception):
    """Base of every error that geomtraj raises on purpose."""


class GeomtrajWarning(UserWarning):
    """What geomtraj goes on with although it may not be what was meant; the message says what to do then."""


class InputError(GeomtrajError, ValueError):
    """What the caller passed in cannot be used as it is."""


class ExamplesInteract(InputError):
    """Examples of a batch depend on each other, so that none can be looked at on its own."""


class TrajectoryError(GeomtrajError):
    """A stored trajectory or result is missing, damaged, of another model or of another format."""


class NotRecorded(TrajectoryError, InputError):
    """What is asked for needs something that the run was recorded without."""


class ComputationError(GeomtrajError, RuntimeError):
    """The numbers did not come out: a non-finite loss, a job that would take hours, memory that does not suffice."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a list, with the names that come near.

    Args:
        kind: What is named, in the singular ("optimizer").
        name: The unknown name.
        known: All names there are.

    Returns:
        An `InputError` to raise.
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "choose one of them."
    return InputError(f"unknown {kind} {name!r}: there are {', '.join(known)}; {hint}")
