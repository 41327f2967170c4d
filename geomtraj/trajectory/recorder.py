"""Records iterates from inside the optimizer's step, so that the user's training loop stays as it is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from geomtraj.errors import InputError, TrajectoryError
from geomtraj.trajectory import log, manifest, model_state, store
from geomtraj.trajectory.schedules import Schedule, check_schedule, every


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
        model: The model in training; torch.compile's wrapper is looked through.
        optimizer: Any torch optimizer of its parameters.
        schedule: Which steps to record, a function step -> bool. Step 0 is the model as it enters the block,
            step k the model after k optimizer steps.
        meta: What the reader of the trajectory should know (learning rate, seed); numbers, strings, lists,
            dicts.
        resume: Go on from the last whole iterate in the folder, which is loaded into model and optimizer on
            entry; the loop then starts at `rec.step`. An empty folder starts a new run.

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
        optimizer: torch.optim.Optimizer,
        schedule: Schedule | None = None,
        meta: dict[str, Any] | None = None,
        resume: bool = False,
    ):
        if not isinstance(model, nn.Module):
            raise InputError(f"Recorder(path, model, optimizer) needs a module, not {type(model).__name__}.")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(
                f"Recorder(path, model, optimizer) needs a torch optimizer, not {type(optimizer).__name__}: "
                "pass the object whose step() updates the model."
            )
        owned = {id(p) for p in model_state.named_parameters(model).values()}
        if not any(id(p) in owned for group in optimizer.param_groups for p in group["params"]):
            raise InputError("the optimizer holds no parameter of this model: pass a pair that trains together.")
        self.path = Path(path)
        self.step = 0
        self._model = model
        self._optimizer = optimizer
        self._schedule = check_schedule(every(100) if schedule is None else schedule)
        self._meta = manifest.check_meta(meta)
        self._resume = resume
        self._manifest: dict[str, Any] = {}
        self._log = log.LogWriter(self.path)
        self._hook: Any = None
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
        """Record step 0, or load the last whole iterate, and attach to the optimizer.

        Raises:
            InputError: The folder already holds iterates and resume is False, or the path is a file.
            TrajectoryError: The iterates are of another model, optimizer or newer format; the disk is full.
        """
        if self._hook is not None:
            raise InputError("this Recorder is already recording: make a second one for a second run.")
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file: give the path of a folder to record into.")
        steps = store.stored_steps(self.path)
        if steps and not self._resume:
            raise InputError(
                f"{self.path} already holds a trajectory (last step {steps[-1]}): "
                "choose another path, delete the folder, or go on with resume=True."
            )
        wall_time = self._load_last(steps) if steps else None
        if wall_time is None:
            self.step, wall_time = 0, 0.0
            self._manifest = manifest.describe(self._model, self._optimizer, self._schedule, self._meta)
            log.keep_log_until(self.path, -1)
        else:
            log.keep_log_until(self.path, self.step)
        self._manifest["sessions"].append(manifest.session(self._model, self.step))
        manifest.write_manifest(self.path, self._manifest)
        self._clock = time.perf_counter() - wall_time
        if self.step == 0 and not store.iterate_path(self.path, 0).exists():
            self._record_if_due()
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Detach from the optimizer and store how the run ended."""
        self._hook.remove()
        self._hook = None
        if not self.diverged:
            self._manifest["status"] = "complete" if exception_type is None else "interrupted"
        self._manifest.update(last_step=self.step, wall_time=self.wall_time)
        # An exception on its way out must not be hidden by a full disk here.
        quiet = (TrajectoryError,) if exception_type else ()
        with contextlib.suppress(*quiet):
            self._log.close()
        with contextlib.suppress(*quiet):
            manifest.write_manifest(self.path, self._manifest)

    def log(self, **scalars: Any) -> None:
        """Append numbers or 0-d tensors to the log of the current step.

        Raises:
            InputError: A value is no number, or the Recorder is not recording.
            TrajectoryError: The disk is full.
        """
        if self._hook is None:
            raise InputError("rec.log works inside the block: with Recorder(...) as rec: rec.log(loss=loss).")
        row = log.check_scalars(scalars)  # reading a GPU scalar waits for training, so the clock runs on
        entered = time.perf_counter()
        self._log.append({"step": self.step, "wall_time": self.wall_time, **row})
        if log.non_finite_loss(row):
            self._mark_diverged()
        self._clock += time.perf_counter() - entered

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.step += 1
        self._record_if_due()

    def _record_if_due(self) -> None:
        if not self._schedule(self.step):
            return
        for device in {p.device for p in self._model.parameters() if p.device.type == "cuda"}:
            torch.cuda.synchronize(device)  # or training still queued would count as recording time
        entered = time.perf_counter()
        content = model_state.snapshot(self._model)
        content.update(step=self.step, wall_time=self.wall_time, optimizer=self._optimizer.state_dict())
        store.write_iterate(self.path, self.step, content)
        if not all(bool(torch.isfinite(p).all()) for p in content["parameters"].values()):
            self._mark_diverged()
        self._clock += time.perf_counter() - entered

    def _mark_diverged(self) -> None:
        if not self.diverged:
            self._manifest.update(status="diverged", diverged_at=self.step)
            manifest.write_manifest(self.path, self._manifest)

    def _load_last(self, steps: list[int]) -> float | None:
        """Go back to the last whole iterate; its training time, or None if none is whole."""
        self._manifest = manifest.read_manifest(self.path)
        recorded = self._manifest["optimizer"]["class"]
        if recorded != type(self._optimizer).__name__:
            raise TrajectoryError(
                f"{self.path} was recorded with {recorded}, not {type(self._optimizer).__name__}: "
                "go on with the same optimizer or choose another path."
            )
        torn = []
        for step in reversed(steps):
            try:
                content = store.read_iterate(self.path, step)
                break
            except store.DamagedFile:
                torn.append(step)
        else:
            content = None
        if content is not None:
            model_state.check_same_model(self._model, content, self.path)
            model_state.restore_optimizer(self._optimizer, content["optimizer"], self.path)
            model_state.restore(self._model, content)
        for step in torn:  # training writes them again
            store.iterate_path(self.path, step).unlink()
        if content is None:
            return None
        self.step = content["step"]
        self._manifest.update(status="running", diverged_at=None, schedule=repr(self._schedule))
        if self._meta:
            self._manifest["meta"] = self._meta
        return content["wall_time"]
