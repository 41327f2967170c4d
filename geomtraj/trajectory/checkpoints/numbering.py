"""The step of each checkpoint: what it says itself, else the number in its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory.checkpoints.forms import as_step
from geomtraj.trajectory.store import DamagedFile

_LABELLED = re.compile(r"(?:global_?step|step|steps|iter|iteration|checkpoint|ckpt)[-_=]?(\d+)", re.IGNORECASE)


def given_steps(steps: Any, paths: Sequence[Any]) -> list[int]:
    """The steps that the caller gave.

    Args:
        steps: Whole numbers, one for each path, or a function path -> step.
        paths: The checkpoints.

    Raises:
        InputError: They are no steps, or not as many as checkpoints.
    """
    made = [steps(path) for path in paths] if callable(steps) else steps
    if isinstance(made, (str, bytes)) or not isinstance(made, Iterable):
        raise InputError(
            f"steps is {steps!r:.60}: give whole numbers, one for each checkpoint, or a function of a path."
        )
    listed = list(made)
    if len(listed) != len(paths):
        shown = ", ".join(_short(path) for path in list(paths)[:6]) + (" ..." if len(paths) > 6 else "")
        raise InputError(f"steps has {len(listed)} numbers for {len(paths)} checkpoints, which are in order {shown}.")
    try:
        return [as_step(getattr(step, "item", lambda s=step: s)(), f"steps holds {step!r:.40}") for step in listed]
    except (TrajectoryError, TypeError, ValueError) as error:
        raise InputError(str(error)) from None


def known_steps(paths: Sequence[Path], peek: Callable[[Path], int | None]) -> dict[int, Path]:
    """Step -> checkpoint: the step that it says itself, else the number in its name, in the order of steps.

    Of two that say the same step, the one whose name has a number stays: last.ckpt is a copy.

    Args:
        paths: The checkpoints.
        peek: The step that a checkpoint says itself.

    Raises:
        TrajectoryError: A step cannot be told, or two checkpoints have the same.
    """
    named = steps_in_names(paths)
    found: dict[int, Path] = {}
    for path, number in zip(paths, named, strict=True):
        try:
            said = peek(path)
        except DamagedFile:
            if number is None:
                raise
            said = None  # that it is damaged is told when it is read: the others are whole without it
        step = number if said is None else said
        if step is None:
            raise TrajectoryError(f"{path} does not say its step, nor does its name: pass steps=[...].")
        if step in found:
            copies = [p for p in (found[step], path) if not re.search(r"\d", p.name)]
            if len(copies) != 1:
                raise TrajectoryError(
                    f"{found[step]} and {path} are both of step {step}: leave one out, or pass steps=[...]."
                )
            path = next(p for p in (found[step], path) if p not in copies)
        found[step] = path
    return dict(sorted(found.items()))


def steps_in_names(paths: Sequence[Path]) -> list[int | None]:
    """The number in each name that is a step: the only one that differs, or one called step, checkpoint or the like."""
    texts = [str(path) for path in paths]
    split = [re.split(r"(\d+)", text) for text in texts]
    alike = len({tuple(parts[::2]) for parts in split}) == 1
    differing = [i for i in range(1, len(split[0]), 2) if len({parts[i] for parts in split}) > 1] if alike else []
    if len(differing) == 1:
        return [int(parts[differing[0]]) for parts in split]
    return [_in_name(path) for path in paths]


def _in_name(path: Path) -> int | None:
    for name in (path.name, path.parent.name):
        labelled = _LABELLED.findall(name)
        if labelled:
            return int(labelled[-1])
    return None


def _short(path: Any) -> str:
    return "/".join(Path(str(path)).parts[-2:])
