"""Reads a recorded trajectory lazily, one iterate at a time."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from geomtraj.display import html_table
from geomtraj.errors import InputError, TrajectoryError
from geomtraj.isolation import on_the_cpu
from geomtraj.layout import Layout
from geomtraj.trajectory import model_state, store
from geomtraj.trajectory.checkpoints import Checkpoints
from geomtraj.trajectory.folder import absolute
from geomtraj.trajectory.log import NEXT, logged
from geomtraj.trajectory.source import Recorded, Source
from geomtraj.trajectory.steps import plain_optimizers


@dataclass(frozen=True, eq=False)
class Iterate:
    """One recorded point of a training run; all tensors are on the CPU.

    Attributes:
        step: Optimizer steps taken before it.
        logged: Scalars logged at this step, by name.
        wall_time: Seconds of training until this step, recording not counted.
        parameters: Every parameter by name, the frozen ones included.
        buffers: Every buffer by name.
        trainable: Names of the parameters that require grad.
        read: Reads further parts of the file.
        about: What the iterate says of its run: "optimizer", its class; "optimized", the groups' parameters by name;
            "storage", what of it was stored.
        changed: Settings of the optimizer that a scheduler changed between this iterate and the step from it, by group
            and name: {"0/lr": 0.01}.
    """

    step: int
    logged: dict[str, float]
    wall_time: float
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    trainable: tuple[str, ...]
    read: Callable[[Collection[str]], dict[str, Any]] = field(repr=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False)
    changed: dict[str, float] = field(default_factory=dict, repr=False)

    @cached_property
    def theta(self) -> Tensor:
        """The parameters that require grad, shape (P,), in the order of `model.named_parameters()`; tied ones once."""
        tensors = [self.parameters[name].reshape(-1) for name in self.trainable]
        return torch.cat(tensors) if tensors else torch.empty(0)

    @cached_property
    def optimizer_state(self) -> Any:
        """The optimizer's `state_dict()`, or a list of them where several were recorded; None where none was stored.

        Raises:
            TrajectoryError: The file has been removed or damaged since.
        """
        return self.read(("optimizer",))["optimizer"]

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """The rate of each parameter group in the step from here; empty where no optimizer state was stored."""
        states = self.optimizer_state or []
        groups = [g for s in (states if isinstance(states, list) else [states]) for g in s.get("param_groups", ())]
        return tuple(float(self.changed.get(f"{i}/lr", group["lr"])) for i, group in enumerate(groups) if "lr" in group)

    @property
    def learning_rate(self) -> float | None:
        """The first group's learning rate; what was logged as "lr" where no state was stored, else None."""
        return next(iter(self.learning_rates), self.logged.get("lr"))

    def __repr__(self) -> str:
        return f"Iterate(step={self.step}, {self.theta.numel()} parameters, logged={self.logged})"


class Trajectory:
    """A recorded trajectory: a sequence of `Iterate`, each read from its file when it is asked for.

    Iterates come in the order of steps; a slice is again a lazy Trajectory.

    Args:
        path: The folder that a Recorder wrote.

    Raises:
        TrajectoryError: The folder is missing, holds no iterate, or is of a newer format.
    """

    def __init__(self, path: str | Path):
        folder = absolute(path)
        if not folder.is_dir():
            raise TrajectoryError(f"there is no folder {path}: give the path of a recorded run.")
        recorded = Recorded(folder)
        if not recorded.steps:
            raise TrajectoryError(
                f"{folder} holds no iterates: record a run into it first, with gt.Recorder(path, ...), or read "
                "checkpoints of other tools with gt.Trajectory.from_checkpoints(path)."
            )
        self._open(recorded, folder)

    def _open(self, source: Source, path: Path) -> None:
        self._source = source
        self.path = path
        self.steps: list[int] = source.steps
        self.manifest: dict[str, Any] = source.manifest

    @classmethod
    def from_checkpoints(
        cls,
        paths: Any,
        *,
        steps: Iterable[int] | Callable[[Any], int] | None = None,
        load: Callable[[Any], Mapping[str, Any]] | None = None,
        out: str | Path | None = None,
    ) -> Trajectory:
        """Checkpoints that other tools wrote, as a trajectory: each is read when its iterate is asked for.

        Files of torch.save (.pt, .pth, .bin, .ckpt), read with `weights_only` so that nothing in them is executed;
        .safetensors; both in shards with an index; folders such as transformers' checkpoint-N, with their
        optimizer.pt; Lightning's .ckpt, with the prefix of the model's names found by itself. In a dict the model is
        found under "model", "state_dict", "model_state_dict" and the like.

        Parameters stand in the order of the file; `load_into` and `gt.measure` find them by name, and name what is
        missing, what is too much, and shapes that differ. Training times are not known (NaN).

        Args:
            paths: A folder, a glob, or a list of files, folders and globs; "hf://owner/name@revision" is a revision of
                a model on the Hugging Face hub, "hf://owner/name@step*" several.
            steps: Whole numbers in the order of the names, or a function of a path. Left out, each checkpoint's step is
                the one it names itself ("step", "global_step", "iter_num", ...), else the number in its name.
            load: Reads a checkpoint of any other form: load(path) -> {"model": state_dict, "optimizer": state_dict or
                None, "step": int}. With it, `paths` may hold whatever it takes, such as revisions of a model.
            out: The folder that results go into, which `gt.Results.load` and the commands read; None for `geomtraj`
                beside the checkpoints. It is made when something is measured.

        Raises:
            InputError: An argument that cannot be used.
            TrajectoryError: There is no checkpoint, one cannot be read, its step cannot be told, or two have the same.
        """
        checkpoints = Checkpoints(paths, steps, load, out)
        made = cls.__new__(cls)
        made._open(checkpoints, checkpoints.path)
        return made

    @property
    def whole(self) -> Trajectory:
        """The trajectory with all of its iterates, of which this may be a slice."""
        part = Trajectory.__new__(Trajectory)
        part.__dict__.update(self.__dict__)
        part.steps = store.stored_steps(self.path)
        return part

    @property
    def meta(self) -> dict[str, Any]:
        """What the Recorder was given as `meta`."""
        return self.manifest.get("meta", {})

    @property
    def status(self) -> str:
        """How the run stands: "running" (or killed), "complete", "diverged", "interrupted" or "unseen".

        In the last case the parameters moved by steps that the Recorder did not see.
        """
        return self.manifest.get("status", "running")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """One row per logged step: step, wall_time and the scalars."""
        return [row for row in map(logged, self._logged.values()) if len(row) > 2]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Iterate]:
        return (self.at_step(step) for step in self.steps)

    @overload
    def __getitem__(self, index: int) -> Iterate: ...
    @overload
    def __getitem__(self, index: slice) -> Trajectory: ...
    def __getitem__(self, index: int | slice) -> Iterate | Trajectory:
        if isinstance(index, slice):
            part = Trajectory.__new__(Trajectory)
            part.__dict__.update(self.__dict__)
            part.steps = self.steps[index]
            return part
        return self.at_step(self.steps[index])

    def __repr__(self) -> str:
        span = f"steps {self.steps[0]} to {self.steps[-1]}" if self.steps else "no steps"
        return f"Trajectory({str(self.path)!r}, {len(self)} iterates, {span}, {self.status})"

    def _repr_html_(self) -> str:
        logged = sorted({name for row in self.log for name in row if name not in ("step", "wall_time")})[:4]
        rows = [(step, *(self._logged.get(step, {}).get(name, "") for name in logged)) for step in self.steps]
        return html_table(repr(self), ("step", *logged), rows)

    @on_the_cpu
    def at_step(self, step: int) -> Iterate:
        """The iterate recorded after `step` optimizer steps; the optimizer's state is read when it is asked for.

        Raises:
            TrajectoryError: That step was not recorded (near ones are named), or its file is damaged.
        """
        content = self._read(step, ("parameters", "buffers"))
        parameters = content["parameters"]
        row = self._logged.get(step, {})
        return Iterate(
            step=step,
            logged={name: value for name, value in logged(row).items() if name not in ("step", "wall_time")},
            wall_time=content["wall_time"],
            parameters=parameters,
            buffers=content["buffers"],
            trainable=tuple(content["trainable"]),
            read=functools.partial(self._read, step),
            about=content.get("about") or {},
            changed={k.removeprefix(NEXT): v for k, v in row.items() if k.startswith(NEXT)},
        )

    def wall_time(self, step: int) -> float:
        """Seconds of training until a recorded step, read without its tensors; errors as for `at_step`."""
        return self._read(step, ())["wall_time"]

    def parameters(self, step: int, subset: str | Iterable[str]) -> dict[str, Tensor]:
        """The parameters that match a glob or one of several, by name, read without the others.

        Raises:
            InputError: A glob matches no parameter.
            TrajectoryError: As for `at_step`.
        """
        layout = Layout(self.manifest["parameters"], self.manifest.get("aliases", {}))
        names = set(layout.select(subset))
        return self._read(step, ("parameters",), names.__contains__)["parameters"]

    def digest(self, step: int) -> str:
        """What names the content of an iterate among all others, read without its tensors; errors as for `at_step`."""
        self._check_recorded(step)
        return self._source.digest(step)

    def stamp(self, step: int) -> tuple[int, int] | None:
        """Size in bytes and time of the last change, in nanoseconds, of an iterate's file; None where there is none."""
        return self._source.stamp(step) if step in self.steps else None

    def prepare(self, model: nn.Module) -> None:
        """Make ready the folder that results of this model go into.

        Raises:
            TrajectoryError: It cannot be used.
        """
        self._source.prepare(model)

    @on_the_cpu
    def put_into(self, model: nn.Module, iterate: Iterate, *, partial: bool = False) -> None:
        """Put an iterate's parameters and buffers into a model, the frozen and tied ones included.

        Raises:
            TrajectoryError: The trajectory is of another model; nothing is changed then.
        """
        content = {"parameters": iterate.parameters, "buffers": iterate.buffers}
        model_state.restore(model, self._fitted(model, content, iterate.step, partial))

    @on_the_cpu
    def load_into(
        self,
        model: nn.Module,
        step: int,
        optimizer: Optimizer | Iterable[Optimizer] | None = None,
        *,
        partial: bool = False,
    ) -> None:
        """Put model and optimizer back to where they stood at `step`, so that training goes on bit-equal.

        Parameters and buffers are restored in place, the frozen and tied ones included. Random number
        generators and learning rate schedulers are the caller's own, and so is the number of threads, on
        which the last bit of a sum depends.

        Args:
            model: The model that was recorded, built anew or in use; other number types and devices are
                converted to.
            step: A recorded step.
            optimizer: The optimizer to restore too, or several as they were recorded.
            partial: Whether parameters that were not stored may stay as they are, in a run recorded with `subset`.

        Raises:
            TrajectoryError: The step was not recorded, its file is damaged, or the model or optimizer is
                another one; nothing is changed then.
        """
        if not isinstance(model, nn.Module):
            raise InputError(f"load_into(model, step) needs a torch module, not {type(model).__name__}.")
        content = self._read(step, ("parameters", "buffers", *(("optimizer", "held") if optimizer is not None else ())))
        if not partial and "subset" in self.manifest.get("storage", {}):
            raise TrajectoryError(
                f"{self.path} holds only the parameters {', '.join(content['parameters'])[:200]}: pass partial=True to "
                "load these and leave the others as they are."
            )
        fitted = self._fitted(model, content, step, partial)
        if optimizer is not None:
            model_state.restore_optimizers(plain_optimizers(optimizer), content, self.path)
        model_state.restore(model, fitted)

    def _fitted(self, model: nn.Module, content: dict[str, Any], step: int, partial: bool) -> dict[str, Any]:
        fitted = self._source.fitted(model, content, step)
        model_state.check_same_model(model, fitted, self.path, partial=partial)
        return fitted

    @cached_property
    def _logged(self) -> dict[int, dict[str, Any]]:
        return {row["step"]: row for row in self._source.log()}

    def _check_recorded(self, step: int) -> None:
        if step not in self.steps:
            place = bisect.bisect(self.steps, step)
            near = self.steps[max(place - 2, 0) : place + 2]
            raise TrajectoryError(
                f"{self.path} has no iterate of step {step}: "
                f"the recorded steps near it are {', '.join(map(str, near))}."
            )

    def _read(self, step: int, parts: Collection[str], names: Callable[[str], bool] | None = None) -> dict[str, Any]:
        self._check_recorded(step)
        content = self._source.read(step, parts, names)
        fault = _fault(content, parts)
        if fault:
            raise store.damaged(self._source.name(step), fault)
        return content


def _fault(content: dict[str, Any], parts: Collection[str]) -> str:
    """What is wrong with the content of an iterate, empty where nothing is."""
    wall_time, trainable = content.get("wall_time"), content.get("trainable")
    if type(content.get("step")) is not int or not isinstance(wall_time, (int, float)):
        return "its step or wall_time is no number"
    if not isinstance(trainable, list) or not all(isinstance(name, str) for name in trainable):
        return "its trainable is no list of names"
    for part in ("parameters", "buffers"):
        stored = content.get(part)
        if part in parts and not (
            isinstance(stored, dict) and all(isinstance(t, Tensor) and isinstance(k, str) for k, t in stored.items())
        ):
            return f"its {part} are no tensors by name"
    if "parameters" in parts and "buffers" in parts and not set(trainable) <= content["parameters"].keys():
        return "its trainable names a parameter that it lacks"
    if "optimizer" in parts and not isinstance(content.get("optimizer"), (dict, list, type(None))):
        return "its optimizer is no state"
    return ""
