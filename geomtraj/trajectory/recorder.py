"""Records iterates from inside the optimizer's step, so that the user's training loop stays as it is."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from geomtraj.errors import GeomtrajWarning, InputError, TrajectoryError
from geomtraj.trajectory import log, manifest, model_state, store
from geomtraj.trajectory.background import Background, copied
from geomtraj.trajectory.folder import RunFolder, absolute
from geomtraj.trajectory.ranks import Ranks
from geomtraj.trajectory.resume import Start, bring_to, find_start, set_aside
from geomtraj.trajectory.schedules import Schedule, check_schedule, every
from geomtraj.trajectory.steps import (
    PREFIXES,
    Round,
    StepWatch,
    optimized,
    parameters_of,
    plain_optimizers,
    settings_of,
)
from geomtraj.trajectory.storage import Storage, stored_lossy


class Recorder:
    """Records a training run: `with Recorder(path, model, optimizer) as rec:` around the user's own loop.

    At each step that the schedule names, every parameter and buffer, the optimizer's whole state and the
    training time go to one file; the numbers passed to `log` go to log.jsonl. Training itself is untouched:
    the iterates with and without a Recorder are bit-equal.

    A NaN or infinite parameter at a recorded step, or a NaN or infinite logged loss, marks the run "diverged"
    in the manifest; whether to stop is the loop's choice. An exception that leaves the block marks it
    "interrupted".

    Args:
        path: Folder of the trajectory; made if absent.
        model: The model in training; the wrappers of torch.compile and DistributedDataParallel are looked through.
            Where the latter trains it in several processes, each makes the same calls, and the first one records.
        optimizer: Any torch optimizer of its parameters, or a list of several: a step ends with the last of them.
            An optimizer that holds another, as SAM does, is watched through it where its own step() is not called.
        schedule: Which steps to record, a function step -> bool. Step 0 is the model as it enters the block,
            step k the model after k optimizer steps.
        meta: What the reader of the trajectory should know (learning rate, seed); numbers, strings, lists,
            dicts.
        resume: Go on from the last whole iterate in the folder, which is loaded into model and optimizer on
            entry; the loop then starts at `rec.step`. An empty folder starts a new run. Where another checkpoint was
            restored into them before, recording goes on at its step, or the Recorder refuses.
        background: Whether iterates are written by a thread beside training, from a copy; training waits where the
            one before is not yet on the disk.
        subset: A glob of parameter names, or several: the only parameters to store. All buffers are.
        dtype: The type to store floating-point numbers in, such as torch.bfloat16; None for their own.
        optimizer_state: Whether the optimizers' state is stored; without it, as with `subset` and `dtype`, training
            cannot go on from the iterates alone.
        compress: Whether to compress files without loss, for more time.
        keep: How many of the newest iterates to keep, or a schedule of those to keep beside the newest; the others are
            removed when a newer one is on the disk.

    Raises:
        InputError: An argument that cannot be used.

    Attributes:
        step: Optimizer steps taken so far.
        diverged: Whether the run has been marked so.
    """

    def __init__(
        self,
        path: str | Path,
        model: nn.Module,
        optimizer: Optimizer | Iterable[Optimizer],
        schedule: Schedule | None = None,
        meta: dict[str, Any] | None = None,
        resume: bool = False,
        *,
        background: bool = False,
        subset: str | Iterable[str] | None = None,
        dtype: torch.dtype | None = None,
        optimizer_state: bool = True,
        compress: bool = False,
        keep: int | Schedule | None = None,
    ):
        if not isinstance(model, nn.Module):
            raise InputError(f"Recorder(path, model, optimizer) needs a module, not {type(model).__name__}.")
        self._optimizers = plain_optimizers(optimizer)
        owned = {id(p) for p in model_state.named_parameters(model).values()}
        if not owned & parameters_of(self._optimizers).keys():
            raise InputError("the optimizer holds no parameter of this model: pass a pair that trains together.")
        self._storage = Storage.checked(subset, dtype, optimizer_state, compress, keep)
        self._storage.names(model)
        self.path = absolute(path)
        self.step = 0
        self._model = model
        self._schedule = check_schedule(every(100) if schedule is None else schedule)
        self._meta = manifest.check_meta(meta)
        self._resume = resume
        self._manifest: dict[str, Any] = {}
        self._folder = RunFolder(self.path)
        self._log = log.LogWriter(self.path)
        self._background = Background() if background else None
        self._watches: list[StepWatch] = []
        self._recording = False
        self._process = 0  # the one that records: forks of it, such as a DataLoader's workers, do not
        self._told = False  # whether a step was told of since the last tick
        self._entered_at = 0
        self._restored_at: int | None = None
        self._ranks = Ranks(model)
        self._recorded: int | None = None
        self._fingerprint: list[int] = []
        self._settings: dict[str, float] = {}
        self._clock = 0.0  # perf_counter at which the training time would be zero

    @property
    def diverged(self) -> bool:
        """Whether this run has been marked as diverged."""
        return self._manifest.get("status") == "diverged"

    @property
    def wall_time(self) -> float:
        """Seconds of training so far, over all stretches of a resumed run, recording not counted."""
        return time.perf_counter() - self._clock

    def __enter__(self) -> Recorder:
        """Record step 0, or load the last whole iterate, and attach to the optimizers.

        Raises:
            InputError: The folder already holds iterates and resume is False, or the path is a file.
            TrajectoryError: Another process records there; the iterates are of another model, optimizer or newer
                format, or none can be read; the disk is full. The folder is then as it was before.
        """
        if self._recording:
            raise InputError("this Recorder is already recording: make a second one for a second run.")
        step, attached = self._ranks.by_the_first(self._open)
        if not self._ranks.writes:
            if step and not attached:
                bring_to(self.path, step, self._model, self._optimizers)
            self.step = step
            self._attach()
        self._recording, self._process = True, os.getpid()
        self._settings = settings_of(self._optimizers)
        return self

    def start(self, step: int | None = None) -> Recorder:
        """Enter the block, where a loop has no place for `with`; `stop` leaves it.

        Args:
            step: Of which step a checkpoint is that was restored before: recording goes on there, nothing is loaded.

        Raises:
            InputError, TrajectoryError: As for entering the block; the step is no count.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise InputError(f"start(step={step!r}): give the count of optimizer steps before the restored checkpoint.")
        self._restored_at = step or None
        return self.__enter__()

    def stop(self) -> None:
        """Leave the block as a loop does that comes to its end; a second call does nothing."""
        if self._recording:
            self.__exit__(None, None, None)

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Record the last step, detach from the optimizers and store how the run ended."""
        self._recording = False
        self._detach()
        if os.getpid() != self._process or not self._ranks.writes:
            return
        # An exception on its way out must not be hidden by a full disk here.
        with contextlib.ExitStack() as ending:
            ending.callback(self._folder.release)
            if exception_type is not None:
                ending.enter_context(contextlib.suppress(TrajectoryError))
            ending.callback(self._store_ending)
            ending.callback(self._log.close)
            ending.callback(self._wait)
            self._manifest.update(last_step=self.step, wall_time=self.wall_time, log_rows=self._log.rows)
            if not self.diverged:
                self._manifest["status"] = "interrupted"
            if exception_type is None:
                if self._recorded != self.step and not self.diverged:
                    self._record()
                self._wait()
                if not self.diverged:
                    self._manifest["status"] = self._ending()

    def _store_ending(self) -> None:
        self._folder.check()
        manifest.write_manifest(self.path, self._manifest)

    def tick(self) -> None:
        """Tell of a step that no optimizer's step() tells of; after one that was told of, this counts nothing.

        Raises:
            InputError: The Recorder is not recording.
            TrajectoryError: The disk is full, or the folder is gone.
        """
        self._check_recording("rec.tick", "rec.tick()")
        if not self._told:
            self._after_step()
        self._told = False

    def record(self) -> None:
        """Record the current step now, whatever the schedule says, if it is not yet; errors as for `tick`."""
        self._check_recording("rec.record", "rec.record()")
        if self._ranks.writes and self._recorded != self.step:
            self._record()

    def log(self, **scalars: Any) -> None:
        """Append numbers or 0-d tensors to the log of the current step.

        Raises:
            InputError: A value is no number, or the Recorder is not recording.
            TrajectoryError: The disk is full, or the folder is gone.
        """
        self._check_recording("rec.log", "rec.log(loss=loss)")
        if not self._ranks.writes:
            return
        if self._background is not None:
            self._background.check()
        row = log.check_scalars(scalars)  # reading a GPU scalar waits for training, so the clock runs on
        entered = time.perf_counter()
        self._log.append({"step": self.step, "wall_time": self.wall_time, **row})
        if log.non_finite_loss(row):
            self._mark_diverged()
        self._clock += time.perf_counter() - entered

    def _check_recording(self, name: str, call: str) -> None:
        if not self._recording:
            raise InputError(f"{name} works inside the block: with Recorder(...) as rec: {call}.")
        if os.getpid() != self._process:
            raise InputError(f"{name} works in the process that records, {self._process}, and this is a fork of it.")

    def _open(self) -> tuple[int, bool]:
        """Begin to record; the step, and whether model and optimizer stood there already."""
        self._folder.hold()
        try:
            self._attach()
            return self._begin()
        except BaseException:
            self._detach()
            self._folder.undo()
            raise

    def _begin(self) -> tuple[int, bool]:
        """Find where the run starts, and write what a run begins with."""
        steps = store.stored_steps(self.path)
        if steps and not self._resume and self._restored_at is None:
            raise InputError(
                f"{self.path} already holds a trajectory (last step {steps[-1]}): "
                "choose another path, delete the folder, or go on with resume=True."
            )
        self._warn_of_the_rest()
        if steps:
            start = self._go_on(steps)
        else:
            start = Start(self._restored_at or 0, 0.0, attached=self._restored_at is not None)
            self._manifest = manifest.describe(self._model, self._optimizers, self._schedule, self._meta)
            self._manifest["storage"] = self._storage.to_json()
        self.step = self._entered_at = start.step
        self._recorded = start.step if start.step in steps else None
        session = manifest.session(self._model, self.step, self._optimizers)
        self._manifest["sessions"].append(session | ({"attached": True} if start.attached else {}))
        self._fingerprint = model_state.fingerprint(self._model)
        set_aside(self.path, start)
        self._clock = time.perf_counter() - start.wall_time
        try:
            self._log.start(self.step if steps else -1)
            manifest.write_manifest(self.path, self._manifest)
            if self._recorded is None:
                self._record_if_due()
                self._wait()
        except BaseException:
            self._log.close()
            if not steps:  # nothing is left of a run that could not begin
                for name in (log.NAME, manifest.NAME):
                    (self.path / name).unlink(missing_ok=True)
            raise
        return start.step, start.attached

    def _go_on(self, steps: list[int]) -> Start:
        self._manifest = manifest.read_manifest(self.path)
        recorded, mine = self._manifest["optimizer"].get("class"), manifest.classes(self._optimizers)
        if mine not in (recorded, *(str(recorded).removeprefix(prefix) for prefix in PREFIXES)):
            raise TrajectoryError(
                f"{self.path} was recorded with {recorded}, not {mine}: "
                "go on with the same optimizer or choose another path."
            )
        start = find_start(
            self.path, steps, self._model, self._optimizers,
            run=self._manifest.get("run"), lossy=self._storage.lossy() or stored_lossy(self._manifest),
            restored_at=self._restored_at,
        )  # fmt: skip
        missing = manifest.not_optimized(self._model, self._optimizers)
        self._manifest.update(status="running", diverged_at=None, schedule=repr(self._schedule), not_optimized=missing)
        self._manifest.setdefault("sessions", [])
        if self._meta:
            self._manifest["meta"] = self._meta
        return start

    def _warn_of_the_rest(self) -> None:
        missing = manifest.not_optimized(self._model, self._optimizers)
        if missing:
            warnings.warn(
                f"the optimizer holds only a part of the trainable parameters, not {', '.join(missing[:5])}"
                f"{f' and {len(missing) - 5} more' if len(missing) > 5 else ''}: pass every optimizer that updates "
                "the model, as a list, so that iterates are taken after the last of them has stepped.",
                GeomtrajWarning,
                stacklevel=4,
            )

    def _attach(self) -> None:
        turn = Round(len(self._optimizers), self._told_of_a_step)
        for index, optimizer in enumerate(self._optimizers):
            stepped = functools.partial(turn.stepped, index)
            self._watches.append(StepWatch(optimizer, stepped, on_begin=self._before_step))

    def _detach(self) -> None:
        for watch in self._watches:
            watch.remove()
        self._watches = []

    def _before_step(self) -> None:
        """Log what a scheduler has changed since the iterate was recorded that this step leaves."""
        if os.getpid() == self._process and self._recorded == self.step and not self.diverged:
            now = settings_of(self._optimizers)
            changed = {f"{log.NEXT}{k}": v for k, v in now.items() if self._settings.get(k) != v and isfinite(v)}
            self._settings = now
            if changed:
                self._log.append({"step": self.step, "wall_time": self.wall_time, **changed})

    def _told_of_a_step(self) -> None:
        self._told = True
        if os.getpid() == self._process:
            self._after_step()

    def _after_step(self) -> None:
        self.step += 1
        self._record_if_due()

    def _ending(self) -> str:
        """The status of a run that came to its end: "complete", or "unseen" where its steps were not seen."""
        if self.step > self._entered_at or model_state.fingerprint(self._model) == self._fingerprint:
            return "complete"
        warnings.warn(
            f"{self.path}: the parameters have changed, but no step of the optimizer was seen, so nothing between was "
            "recorded: call rec.tick() after each step, or pass the optimizers whose step() is called.",
            GeomtrajWarning,
            stacklevel=3,
        )
        return "unseen"

    def _record_if_due(self) -> None:
        if self._ranks.writes and self._schedule(self.step):
            self._record()

    def _record(self) -> None:
        for device in {p.device for p in self._model.parameters() if p.device.type == "cuda"}:
            torch.cuda.synchronize(device)  # or training still queued would count as recording time
        entered = time.perf_counter()
        self._wait()  # at most one copy at a time
        self._folder.check()
        content = {"step": self.step, "wall_time": self.wall_time, "run": self._manifest.get("run")}
        self._settings = settings_of(self._optimizers)
        names = {id(p): name for name, p in model_state.named_parameters(self._model).items()}
        content["about"] = manifest.about(self._manifest) | {"optimized": optimized(self._optimizers, names)}
        content |= self._storage.content(self._model, self._optimizers)
        write = functools.partial(self._write, self.step)
        copy = None if self._background is None else copied(content)
        if self._background is None or copy is None:
            write(content)
        else:
            self._background.submit(functools.partial(write, copy))
        self._recorded = self.step
        if not model_state.all_finite(p.detach() for p in model_state.named_parameters(self._model).values()):
            self._mark_diverged()
        self._clock += time.perf_counter() - entered

    def _write(self, step: int, content: dict[str, Any]) -> None:
        store.write_iterate(self.path, step, content, dtype=self._storage.dtype, compress=self._storage.compress)
        self._storage.drop(self.path, step)

    def _wait(self) -> None:
        if self._background is not None:
            self._background.wait()

    def _mark_diverged(self) -> None:
        if not self.diverged:
            self._manifest.update(status="diverged", diverged_at=self.step)
            manifest.write_manifest(self.path, self._manifest)
