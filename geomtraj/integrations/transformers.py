"""Transformers: recording from its Trainer, and the loss that its models compute themselves.

`Trainer(callbacks=[RecorderCallback("runs/adam-0")])`, then `gt.Problem(model, loss, batches)`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj import losses
from geomtraj.errors import InputError
from geomtraj.integrations.options import Recording
from geomtraj.trajectory import Recorder, Schedule

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError:
        raise ImportError("geomtraj.integrations.transformers needs transformers: pip install transformers") from None


class RecorderCallback(TrainerCallback):
    """Records a run of the Trainer as `gt.Recorder` does: step 0, the steps that the schedule names, and the last one.

    `trainer.train(resume_from_checkpoint=...)` goes on with the trajectory at the step of that checkpoint; iterates
    behind it are kept aside. What the Trainer logs is logged. Under several processes the first one records.

    Args:
        path: Folder of the trajectory.
        schedule: Which steps to record, such as `gt.every(100)`.
        **options: Further options of `gt.Recorder` (meta, background, subset, dtype, ...).

    Raises:
        InputError: There is no such option.
    """

    def __init__(self, path: str | Path, schedule: Schedule | None = None, **options: Any):
        self._recording = Recording(path, schedule, options)

    @property
    def recorder(self) -> Recorder | None:
        """The Recorder while training runs, for `recorder.log` and `recorder.step`."""
        return self._recording.recorder

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin, with model and optimizer as the Trainer has restored them."""
        if state.is_world_process_zero:
            self._recording.begin(kwargs["model"], kwargs["optimizer"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Log what the Trainer logs."""
        self._recording.log(dict(logs or {}))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the last step, before the Trainer may load the best model in place of the last one."""
        if control.should_training_stop or state.global_step >= state.max_steps:
            self._recording.record()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the recording."""
        self._recording.end()


def loss(model: nn.Module, batch: Mapping[str, Any]) -> losses.Losses:
    """The model's own loss of a batch with labels, unreduced: `sum(w * losses) / sum(w)` is what the model returns.

    Labels that are -100 have weight 0. Models for causal and masked language modelling, sequence-to-sequence,
    classification of sequences, tokens, images and audio, multiple choice and question answering are known. At the
    first batch the model's own mean is compared.

    Args:
        model: A model of transformers.
        batch: What the model takes by name, with its labels, such as a data collator gives.

    Raises:
        InputError: The kind of model is not known, the batch has no labels, or the model's own loss is another.
    """
    unreduced = _kind(model)
    found = unreduced(model, batch)
    if model not in _COMPARED and torch._C._functorch.peek_interpreter_stack() is None:
        _compare(model, batch, found)
        _COMPARED.add(model)
    return found


_COMPARED: weakref.WeakSet[nn.Module] = weakref.WeakSet()
TOLERANCE = 1e-3
"""Relative difference up to which two means are the same, in half precision too."""


def _kind(model: nn.Module) -> Callable[[nn.Module, Any], losses.Losses]:
    pairs = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    for name in [cls.__name__ for cls in type(model).__mro__]:
        if pairs and ("ConditionalGeneration" in name or "MTModel" in name):
            return losses.seq2seq_lm
        for part, function in _KINDS.items():
            if part in name:
                return function
    raise InputError(
        f"the loss of {type(model).__name__} is not known: write loss(model, batch) that returns one loss per example, "
        "or take one of gt.losses."
    )


def _sequences(model: nn.Module, batch: Any) -> losses.Losses:
    """Cross-entropy, squares or logistic losses, as the model's config says."""
    inputs, labels = losses.parted(batch)
    logits = losses.logits_of(losses.called(model, inputs))
    config: Any = model.config
    kind, count = getattr(config, "problem_type", None), config.num_labels
    whole = not labels.is_floating_point()
    if kind == "regression" or (kind is None and count == 1):
        each = F.mse_loss(logits.squeeze(-1) if count == 1 else logits, labels.to(logits.dtype), reduction="none")
        return each
    if kind == "single_label_classification" or (kind is None and whole):
        return losses.cross_entropy(logits, labels.reshape(-1))
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")


def _choices(model: nn.Module, batch: Any) -> losses.Losses:
    inputs, labels = losses.parted(batch)
    return losses.cross_entropy(losses.logits_of(losses.called(model, inputs)), labels)


def _spans(model: nn.Module, batch: Any) -> losses.Losses:
    """Start and end of an answer, losses (B, 2); weight 0 where it lies outside of the text."""
    ends = [batch.get("start_positions"), batch.get("end_positions")]
    if not all(isinstance(end, Tensor) for end in ends):
        raise InputError("the batch has no start_positions and end_positions: add the answers.")
    output = model(**{k: v for k, v in batch.items() if k not in ("start_positions", "end_positions")})
    columns, weights = [], []
    for logits, end in zip((output["start_logits"], output["end_logits"]), ends, strict=True):
        place = end.reshape(-1).clamp(0, logits.shape[1])
        inside = place < logits.shape[1]
        columns.append(F.cross_entropy(logits, torch.where(inside, place, losses.IGNORED), reduction="none"))
        weights.append(inside.to(logits.dtype))
    return torch.stack(columns, 1), torch.stack(weights, 1)


_KINDS: dict[str, Callable[[nn.Module, Any], losses.Losses]] = {
    "MaskedLM": losses.masked_lm,
    "CausalLM": losses.causal_lm,
    "LMHead": losses.causal_lm,
    "SequenceClassification": _sequences,
    "TokenClassification": losses.masked_lm,
    "ImageClassification": _sequences,
    "AudioClassification": _sequences,
    "VideoClassification": _sequences,
    "MultipleChoice": _choices,
    "NextSentencePrediction": _choices,
    "QuestionAnswering": _spans,
}


def _compare(model: nn.Module, batch: Any, found: losses.Losses) -> None:
    """Hold the mean of the unreduced losses against the one that the model returns."""
    each, weights = found if isinstance(found, tuple) else (found, torch.ones_like(found))
    each, weights = each.detach().double(), weights.double()
    total = float(weights.sum())
    if model.training or not total:  # dropout draws again
        return
    kept = torch.nn.Module.__getattribute__(model, "config") if hasattr(model, "config") else None
    problem_type = getattr(kept, "problem_type", None)
    with torch.no_grad():
        own = model(**batch)
    if kept is not None and hasattr(kept, "problem_type"):
        kept.problem_type = problem_type  # which the model sets at its first loss
    mine, its = float((each * weights).sum()) / total, float(own["loss"])
    if not math.isclose(mine, its, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
        raise InputError(
            f"{type(model).__name__}'s own loss is {its:.6g}, and the mean of its examples' {mine:.6g}: it has a term "
            "of its own (such as a router's); write loss(model, batch) that returns one loss per example."
        )
