"""Ready losses for `gt.Problem`: classification, language models, and torch's own criteria, unreduced.

Each is `loss(model, batch) -> losses` or `(losses, weights)`, and `sum(w * losses) / sum(w)` is what the mean of
torch's criterion, or of a Hugging Face model's own loss, is over one batch. Labels that are -100 have weight 0.

Batches are `(inputs, labels)` or a mapping: its "labels" (or "label") apart, everything goes to the model by name.
Shapes: B examples, T tokens, C classes or entries of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geomtraj.errors import InputError

IGNORED = -100
"""The label that does not count, in torch and in transformers."""
LABELS = ("labels", "label")

Losses = Tensor | tuple[Tensor, Tensor]


def classification(model: nn.Module, batch: Any) -> Losses:
    """Cross-entropy of classes: logits (B, C) or (B, C, ...) with labels (B,) or (B, ...), or probabilities of classes.

    Logits (B, T, C) with labels (B, T) are taken too. The model returns logits, or an object or tuple that has them.

    Raises:
        InputError: Batch, logits and labels do not fit together.
    """
    inputs, labels = parted(batch)
    return cross_entropy(logits_of(called(model, inputs)), labels)


def causal_lm(model: nn.Module, batch: Any) -> Losses:
    """Cross-entropy of each next token: losses (B, T) or (B, T - 1), with labels of -100 at weight 0.

    A mapping is a Hugging Face batch: its labels are the tokens themselves and are shifted here; without labels they
    are input_ids where attention_mask is not 0. In a tuple `(tokens, targets)` the targets are shifted already, as
    nanoGPT's are. A tensor (B, T) is tokens alone.

    Raises:
        InputError: Batch, logits and labels do not fit together.
    """
    if isinstance(batch, Tensor):
        batch = (batch[:, :-1], batch[:, 1:])
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name not in LABELS}
        labels = next((batch[name] for name in LABELS if batch.get(name) is not None), None)
        if labels is None:
            labels = _tokens_as_labels(batch)
        logits = logits_of(called(model, inputs))
        return token_losses(logits[:, :-1], labels[:, 1:])
    inputs, labels = parted(batch)
    logits = logits_of(called(model, inputs))
    if logits.dim() == 3 and logits.shape[1] != labels.shape[1]:  # nanoGPT: all positions only where targets are given
        logits = logits_of(model(inputs, labels))
    return token_losses(logits, labels)


def masked_lm(model: nn.Module, batch: Any) -> Losses:
    """Cross-entropy of the masked tokens: losses (B, T), with labels of -100 (all others) at weight 0.

    Raises:
        InputError: Batch, logits and labels do not fit together.
    """
    inputs, labels = parted(batch)
    return token_losses(logits_of(called(model, inputs)), labels)


def seq2seq_lm(model: nn.Module, batch: Any) -> Losses:
    """Cross-entropy of a decoder's tokens: losses (B, T), with labels of -100 at weight 0.

    A mapping is a Hugging Face batch: where it has no decoder_input_ids, the model makes them of the labels. A tuple is
    `(source, decoder inputs, labels)`.

    Raises:
        InputError: Batch, logits and labels do not fit together.
    """
    inputs, labels = parted(batch)
    if not isinstance(inputs, Mapping):
        if not (isinstance(inputs, tuple) and len(inputs) == 2):
            raise InputError(
                "seq2seq_lm takes a mapping with labels, or a tuple (source, decoder inputs, labels): the decoder "
                "needs inputs of its own, such as the labels shifted right."
            )
        return token_losses(logits_of(called(model, inputs)), labels)
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if inputs.get("decoder_input_ids") is None and callable(own):
        inputs = {**inputs, "decoder_input_ids": own(labels=labels)}
    return token_losses(logits_of(called(model, inputs)), labels)


def from_criterion(criterion: Any) -> Criterion:
    """A loss made of torch's criterion, such as `nn.CrossEntropyLoss(label_smoothing=0.1)`, with its mean kept exactly.

    Batches are `(inputs, target)` or a mapping with labels. Where logits have the classes last, (B, T, C), and the
    target is (B, T), they are turned to what torch expects. `gt.Problem` takes a criterion of torch's as it is.

    Args:
        criterion: A module `criterion(output, target)` with an attribute `reduction`; it is not changed.

    Raises:
        InputError: It has no `reduction`, or one that is no mean.
    """
    reduction = getattr(criterion, "reduction", None)
    if not isinstance(criterion, nn.Module) or not isinstance(reduction, str):
        raise InputError(
            f"{type(criterion).__name__} is no criterion with a reduction: pass an instance such as "
            "nn.CrossEntropyLoss(), or write loss(model, batch) that returns one loss per example."
        )
    wanted = [p for p in inspect.signature(criterion.forward).parameters.values() if p.default is p.empty]
    if len(wanted) != 2:
        raise InputError(
            f"{type(criterion).__name__} takes {', '.join(p.name for p in wanted)}, not an output and a target: write "
            "loss(model, batch) that calls it with reduction='none'."
        )
    if reduction == "sum":
        raise InputError(
            f"{type(criterion).__name__}(reduction='sum') is no mean: L(theta) is the mean over all examples; "
            "leave reduction out."
        )
    weight = getattr(criterion, "weight", None)
    smoothed = isinstance(criterion, nn.CrossEntropyLoss) and criterion.label_smoothing > 0
    if smoothed and isinstance(weight, Tensor) and not bool((weight > 0).all()):
        raise InputError(
            "CrossEntropyLoss with label_smoothing and a class weight of 0 is no mean of its examples' losses: "
            "write loss(model, batch) of your own, or give every class a weight above 0."
        )
    unreduced: Any = copy.copy(criterion)
    unreduced.reduction = "none"
    return Criterion(unreduced, reduction)


@dataclass(frozen=True)
class Criterion:
    """A criterion as `loss(model, batch)`.

    Attributes:
        criterion: With reduction "none".
        reduction: What it was: "mean", "none" or "batchmean".
    """

    criterion: Any
    reduction: str = "mean"

    def __call__(self, model: nn.Module, batch: Any) -> Losses:
        """The unreduced losses, with the weights that torch's mean gives them."""
        inputs, target = parted(batch)
        output = logits_of(called(model, inputs))
        if not _is_cross_entropy(self.criterion):
            losses = self.criterion(output, target)
            if isinstance(self.criterion, nn.KLDivLoss) and self.reduction == "batchmean":
                return losses.flatten(1).sum(1)
            return losses
        if target.is_floating_point():
            return self.criterion(output, target)
        output = classes_second(output, target)
        losses = self.criterion(output, target)
        counts = target != self.criterion.ignore_index
        if self.criterion.weight is None:
            return losses, counts.to(losses.dtype)
        known = torch.where(counts, target, 0)
        weights = torch.where(counts, self.criterion.weight.to(losses.dtype)[known], 0)
        return losses / torch.where(weights == 0, 1, weights), weights  # torch has multiplied by them already


def parted(batch: Any) -> tuple[Any, Tensor]:
    """Inputs and labels of a batch; several inputs in a tuple.

    Raises:
        InputError: It has no labels that can be told.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in LABELS if batch.get(name) is not None), None)
        if name is None:
            raise InputError(f"the batch has no 'labels', only {', '.join(map(str, batch))}: add them to its mapping.")
        return {key: value for key, value in batch.items() if key not in LABELS}, batch[name]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise InputError(
            f"the batch is a {type(batch).__name__}: a ready loss takes (inputs, labels) or a mapping with 'labels'."
        )
    *inputs, labels = batch
    if not isinstance(labels, Tensor):
        raise InputError(f"the labels, last in the batch, are a {type(labels).__name__}: give a tensor.")
    return (inputs[0] if len(inputs) == 1 else tuple(inputs)), labels


def called(model: nn.Module, inputs: Any) -> Any:
    """The model's output: a mapping goes in by name, a tuple by place, anything else as it is."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned: itself, its "logits", or the first of a tuple.

    Raises:
        InputError: There are none.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("logits")
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise InputError(
            f"the model returned {type(output).__name__} without logits: write loss(model, batch) of your own."
        )
    return found


def cross_entropy(logits: Tensor, labels: Tensor) -> Losses:
    """Unreduced cross-entropy with weight 0 where labels are -100; labels may be probabilities of classes.

    Raises:
        InputError: The shapes do not fit.
    """
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if labels.is_floating_point():
        return F.cross_entropy(logits, labels, reduction="none")
    losses = F.cross_entropy(classes_second(logits, labels), labels, reduction="none", ignore_index=IGNORED)
    return losses, (labels != IGNORED).to(losses.dtype)


def token_losses(logits: Tensor, labels: Tensor) -> Losses:
    """Cross-entropy (B, T) of logits (B, T, C) and labels (B, T).

    Raises:
        InputError: The shapes do not fit.
    """
    if logits.dim() != 3 or logits.shape[:2] != labels.shape:
        raise InputError(
            f"logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)} do not fit: a language "
            "model's are (examples, tokens, vocabulary) and (examples, tokens)."
        )
    return cross_entropy(logits.transpose(1, 2), labels)


def classes_second(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits with their classes in the second dimension, where torch looks for them.

    Raises:
        InputError: They fit the labels neither way.
    """
    shape = tuple(logits.shape)
    if logits.dim() > 1 and (shape[0], *shape[2:]) == tuple(labels.shape):
        return logits
    if logits.dim() > 1 and shape[:-1] == tuple(labels.shape):
        return logits.movedim(-1, 1)
    raise InputError(
        f"logits of shape {shape} and labels of shape {tuple(labels.shape)} do not fit: give one label for each "
        "example (or each token), with the classes in a dimension of the logits' own."
    )


def _tokens_as_labels(batch: Mapping[str, Any]) -> Tensor:
    tokens = batch.get("input_ids")
    if not isinstance(tokens, Tensor):
        raise InputError("the batch has neither 'labels' nor 'input_ids': a language model's loss needs the tokens.")
    mask = batch.get("attention_mask")
    return tokens if mask is None else torch.where(mask != 0, tokens, IGNORED)


def _is_cross_entropy(criterion: Any) -> bool:
    return isinstance(criterion, (nn.CrossEntropyLoss, nn.NLLLoss))
