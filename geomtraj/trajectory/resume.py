"""Where a run goes on: at its last whole iterate, or at the step of a checkpoint that was restored before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtraj.errors import GeomtrajWarning, TrajectoryError
from geomtraj.trajectory import model_state, store
from geomtraj.trajectory.files import numbered


@dataclass
class Start:
    """Where recording begins.

    Attributes:
        step: Optimizer steps taken before.
        wall_time: Seconds of training until there.
        damaged: Steps after it whose files are damaged.
        superseded: Steps after it that are whole, and that training leaves behind.
        attached: Whether model and optimizer stood there already.
    """

    step: int
    wall_time: float
    damaged: list[int] = field(default_factory=list)
    superseded: list[int] = field(default_factory=list)
    attached: bool = False


def find_start(
    folder: Path,
    steps: list[int],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    *,
    run: str | None,
    lossy: str,
    restored_at: int | None = None,
) -> Start:
    """Put model and optimizers where the run goes on, and say where that is.

    Where a checkpoint was restored into them before, the run goes on at its step: that of the iterate that equals it,
    or else the one that the optimizer's own counts of steps give. Nothing in the folder is changed.

    Args:
        folder: The trajectory's folder.
        steps: The steps that have a file.
        model: The model.
        optimizers: The optimizers.
        run: What names the run in its manifest.
        lossy: Why training cannot go on from the iterates themselves; empty where it can.
        restored_at: The step of the checkpoint that was restored before, where the caller knows it.

    Raises:
        TrajectoryError: No iterate can be read, they are of another model or optimizer, or it cannot be told which
            step the restored checkpoint is of.
    """
    content, damaged = _last_whole(folder, steps, run)
    whole = [step for step in steps if step not in damaged]
    model_state.check_same_model(model, content, folder, partial=bool(lossy))
    if restored_at is not None:
        return _at_known_step(folder, whole, damaged, None if lossy else model, restored_at)
    equal = _equal_step(folder, whole, model)
    restored = any(_has_state(o) for o in optimizers)
    if equal is None and restored:
        start = _by_counts(folder, content, optimizers, whole)
    elif lossy:
        start = _beside(folder, equal, lossy)
    elif equal is None or equal in (whole[0], whole[-1]):
        model_state.restore_optimizers(optimizers, content, folder)
        model_state.restore(model, content)
        return Start(content["step"], content["wall_time"], damaged)
    else:
        content = store.read_iterate(folder, equal)
        if restored and not _same_state(optimizers, content):
            raise _unknown(folder, f"the model is that of step {equal}, but the optimizer's state is another")
        model_state.restore_optimizers(optimizers, content, folder)
        start = Start(equal, content["wall_time"], attached=True)
    start.damaged = damaged
    start.superseded = [step for step in whole if step > start.step]
    return start


def set_aside(folder: Path, start: Start) -> None:
    """Rename the files that training will write again, so that none is lost: to .damaged, or to .superseded."""
    named = []
    for steps, suffix in ((start.damaged, ".damaged"), (start.superseded, ".superseded")):
        for step in steps:
            path = store.iterate_path(folder, step)
            target = numbered(path, suffix)
            path.rename(target)
            named.append(target.name)
    if start.damaged:
        warnings.warn(
            f"{folder}: {len(start.damaged)} damaged iterates were kept as {', '.join(named[:5])}"
            f"{' and more' if len(named) > 5 else ''}; the run goes on at step {start.step}.",
            GeomtrajWarning,
            stacklevel=4,
        )


def bring_to(folder: Path, step: int, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Put model and optimizers where they stood at a step.

    Raises:
        TrajectoryError: Its iterate cannot be read, or is of another model or optimizer.
    """
    content = store.read_iterate(folder, step)
    model_state.check_same_model(model, content, folder)
    model_state.restore_optimizers(optimizers, content, folder)
    model_state.restore(model, content)


def _at_known_step(folder: Path, whole: list[int], damaged: list[int], model: nn.Module | None, step: int) -> Start:
    """Attach to a step that the caller knows the restored checkpoint to be of; a model is compared with its iterate."""
    parameters = {} if model is None else model_state.snapshot(model)["parameters"]
    if step in whole and parameters and not store.same_tensors(folder, step, "parameters", parameters):
        raise _unknown(folder, f"they are said to be at step {step}, where the iterate is another")
    before = [s for s in whole if s <= step] or whole[:1]
    wall_time = store.read_iterate(folder, before[-1], ())["wall_time"]
    return Start(step, wall_time, damaged, [s for s in whole if s > step], attached=True)


def _beside(folder: Path, equal: int | None, lossy: str) -> Start:
    """Attach to the iterate that the model already equals, since the model cannot be brought there."""
    if not equal:
        raise TrajectoryError(
            f"{folder} holds {lossy}, from which training cannot go on: restore a checkpoint of your own into model "
            "and optimizer before the Recorder is entered, or record into another folder."
        )
    return Start(equal, store.read_iterate(folder, equal, ())["wall_time"], attached=True)


def _last_whole(folder: Path, steps: list[int], run: str | None) -> tuple[dict[str, Any], list[int]]:
    damaged: list[int] = []
    for step in reversed(steps):
        try:
            return store.read_iterate(folder, step, run=run), damaged
        except store.DamagedFile:
            damaged.append(step)
    raise TrajectoryError(
        f"none of the {len(steps)} iterates in {folder / store.FOLDER} can be read, and a run is not started over "
        "what may be repaired: see `geomtraj verify`, restore a copy, or record into another folder."
    )


def _equal_step(folder: Path, steps: list[int], model: nn.Module) -> int | None:
    """The last step whose parameters are the model's own; the first one comes first, since runs begin there."""
    parameters = model_state.snapshot(model)["parameters"]
    for step in [steps[0], *reversed(steps[1:])]:
        try:
            if store.same_tensors(folder, step, "parameters", parameters):
                return step
        except store.DamagedFile:
            continue
    return None


def _by_counts(folder: Path, last: dict[str, Any], optimizers: Sequence[Optimizer], steps: list[int]) -> Start:
    stored = [_count(state) for state in model_state.optimizer_states(last)]
    live = [_count(o.state_dict()) for o in optimizers]
    ahead = {now - then for now, then in zip(live, stored, strict=False) if now is not None and then is not None}
    step = last["step"] + ahead.pop() if len(ahead) == 1 else None
    if step is None or step < 0:
        raise _unknown(folder, "they equal none of its iterates, and the optimizer keeps no count of its steps")
    if step in steps:
        raise _unknown(folder, f"by the optimizer's count they are at step {step}, where the iterate is another")
    before = [s for s in steps if s <= step] or steps[:1]
    return Start(step, store.read_iterate(folder, before[-1], ())["wall_time"], attached=True)


def _unknown(folder: Path, why: str) -> TrajectoryError:
    return TrajectoryError(
        f"model and optimizer hold another checkpoint than the run in {folder} ({why}): enter the Recorder before "
        "anything is restored, restore one of its iterates with Trajectory.load_into, or record into another folder."
    )


def _has_state(optimizer: Optimizer) -> bool:
    """Whether an optimizer holds the traces of steps; some make their state before the first one."""
    count = _count(optimizer.state_dict())
    if count is not None:
        return count > 0
    entries = [state.values() if isinstance(state, dict) else [state] for state in optimizer.state.values()]
    return any(isinstance(value, Tensor) and bool(value.any()) for entry in entries for value in entry)


def _count(state: dict[str, Any]) -> int | None:
    """Steps that an optimizer has taken by its own count, None where it keeps none."""
    counts = {
        int(entry["step"])
        for entry in state.get("state", {}).values()
        if isinstance(entry, dict) and isinstance(entry.get("step"), (int, float, Tensor))
    }
    return max(counts) if counts else None


def _same_state(optimizers: Sequence[Optimizer], content: dict[str, Any]) -> bool:
    states = model_state.optimizer_states(content)
    return all(_equal(o.state_dict().get("state"), s.get("state")) for o, s in zip(optimizers, states, strict=True))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.detach().cpu(), b.detach().cpu())
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and bool(a == b)
