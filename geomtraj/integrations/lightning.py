"""Recording from Lightning: `Trainer(callbacks=[RecorderCallback("runs/adam-0")])`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from geomtraj.errors import InputError
from geomtraj.integrations.options import Recording
from geomtraj.trajectory import Recorder, Schedule

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:  # whichever of its two names is in use
        if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
            from pytorch_lightning import Callback
        else:
            from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise ImportError("geomtraj.integrations.lightning needs Lightning: pip install lightning") from None


class RecorderCallback(Callback):
    """Records a Lightning run as `gt.Recorder` does: step 0, the steps that the schedule names, and the last one.

    Its own state goes into Lightning's checkpoints, so that `trainer.fit(ckpt_path=...)` goes on with the trajectory at
    the step of that checkpoint; iterates behind it are kept aside. The loss of training batches and the learning rate
    are logged every `log_every_n_steps`. Under several processes the first one records.

    Args:
        path: Folder of the trajectory.
        schedule: Which steps to record, such as `gt.every(100)`.
        module: The attribute of the LightningModule that is the model to record, such as "net"; None for all of it.
        **options: Further options of `gt.Recorder` (meta, background, subset, dtype, ...).

    Raises:
        InputError: There is no such option.
    """

    def __init__(
        self, path: str | Path, schedule: Schedule | None = None, *, module: str | None = None, **options: Any
    ):
        self._recording = Recording(path, schedule, options)
        self._module = module
        self._restored: int | None = None
        self._logged = 0

    @property
    def recorder(self) -> Recorder | None:
        """The Recorder while training runs, for `recorder.log` and `recorder.step`."""
        return self._recording.recorder

    def state_dict(self) -> dict[str, Any]:
        """The step, for Lightning's checkpoint."""
        return {} if self.recorder is None else {"step": self.recorder.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the step of a checkpoint."""
        self._restored = state_dict.get("step")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, with model and optimizers as Lightning has restored them."""
        if trainer.fast_dev_run or not trainer.is_global_zero:
            return
        step = trainer.global_step if self._restored is None else self._restored
        self._restored = None
        self._recording.begin(self._chosen(pl_module), trainer.optimizers, step)
        self._logged = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the loss and the learning rate where a step was taken."""
        recorder = self.recorder
        every = trainer.log_every_n_steps
        if recorder is None or recorder.step == self._logged or not every or recorder.step % every:
            return
        self._logged = recorder.step
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups[:1]]
        row = {"lr" if i == 0 else f"lr_{i}": float(rate) for i, rate in enumerate(rates)}
        if isinstance(loss, Tensor) and loss.numel() == 1:
            row["loss"] = float(loss) * trainer.accumulate_grad_batches
        self._recording.log(row)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Record the last step."""
        self._recording.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Mark the run as interrupted."""
        self._recording.end(exception)

    def _chosen(self, pl_module: nn.Module) -> nn.Module:
        if self._module is None:
            return pl_module
        try:
            return attrgetter(self._module)(pl_module)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise InputError(
                f"{type(pl_module).__name__} has no attribute module={self._module!r}: it has {names}."
            ) from None
