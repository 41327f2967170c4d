"""What went wrong inside torch, in one sentence with the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from geomtraj.errors import ComputationError, GeomtrajError, InputError

_SENTENCES: list[tuple[str, type[GeomtrajError], str]] = [
    (
        r"once_differentiable|derivative for .* is not implemented|does not.* support double backward|"
        r"differentiate twice|double backward",
        ComputationError,
        "the model uses an operation without a second derivative ({first}): replace it by plain torch operations, or "
        "pass strategy='finite-differences' to gt.Hessian for finite differences of gradients.",
    ),
    (
        r"support the deepcopy protocol",
        InputError,
        "the loss copies the model or its parameters by copy.deepcopy, which takes a copy out of every derivative "
        "({first}): make the copy before, or use torch.func.functional_call.",
    ),
    (
        r"[Cc]heckpointing is not compatible with|use_reentrant",
        InputError,
        "the model checkpoints activations with use_reentrant=True, which has no second derivative ({first}): pass "
        "use_reentrant=False to torch.utils.checkpoint.",
    ),
    (
        r"modified by an inplace operation|a leaf Variable that requires grad is being used in an in-place|"
        r"is a view and is being modified inplace|view was created inside a custom Function",
        InputError,
        "the model or the loss changes a tensor in place that its derivative needs ({first}): write x = x + y instead "
        "of x += y, or inplace=False.",
    ),
    (
        r"forward AD|forward mode|jvp",
        ComputationError,
        "the model uses an operation without a forward derivative ({first}): choose strategy='double-backward' or "
        "'auto'.",
    ),
    (
        r"[Ee]xpected all tensors to be on the same device|different devices?|is on cpu, but expected|"
        r"not on the expected device",
        InputError,
        "the model and the batches are on different devices ({first}): move the batches to the model's device.",
    ),
    (
        r"must have the same dtype|[Ee]xpected .*scalar type|same dtype",
        InputError,
        "the model and the batches have different number types ({first}): convert the batches to the model's dtype.",
    ),
]


def explained(error: BaseException) -> GeomtrajError | None:
    """The error to raise in place of a known one of torch, to be raised from it; None for unknown ones."""
    text = str(error)
    first = re.split(r"(?<=[.!])\s|\n", text.strip())[0].rstrip(".") if text.strip() else type(error).__name__
    for pattern, kind, sentence in _SENTENCES:
        if re.search(pattern, text):
            return kind(sentence.format(first=first))
    return None


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Inside it, errors of torch that are known here are raised as ours, from the raw ones."""
    try:
        yield
    except GeomtrajError:
        raise
    except RuntimeError as error:
        better = explained(error)
        if better is None:
            raise
        raise better from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(re.search(r"can't allocate memory|not enough memory", str(error)))
