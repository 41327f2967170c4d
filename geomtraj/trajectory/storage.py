"""What of each iterate is stored, in which number type, and which iterates are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from geomtraj import parameter_names
from geomtraj.errors import InputError
from geomtraj.layout import Layout
from geomtraj.trajectory import model_state, store
from geomtraj.trajectory.payload import type_name


@dataclass(frozen=True)
class Storage:
    """What of each iterate is stored.

    Attributes:
        subset: Globs of the parameters; None for all.
        dtype: Number type of what is floating-point; None for its own.
        optimizer_state: Whether the optimizers' state is stored.
        compress: Whether files are made smaller, without loss.
        keep: How many of the newest iterates are kept, or which steps beside the newest one; None for all.
    """

    subset: tuple[str, ...] | None = None
    dtype: torch.dtype | None = None
    optimizer_state: bool = True
    compress: bool = False
    keep: int | Callable[[int], bool] | None = None

    @classmethod
    def checked(cls, subset: Any, dtype: Any, optimizer_state: Any, compress: Any, keep: Any) -> Storage:
        """The record of what a caller passed.

        Raises:
            InputError: An argument that cannot be used.
        """
        if subset is not None:
            subset = (subset,) if isinstance(subset, str) else tuple(subset) if isinstance(subset, Iterable) else (0,)
            if not subset or not all(isinstance(glob, str) for glob in subset):
                raise InputError("subset must be a glob of parameter names or a list of them, like 'layers.0.*'.")
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise InputError(f"dtype must be a floating-point type such as torch.bfloat16, not {dtype!r}.")
        whole = type(keep) is int and keep >= 1
        if keep is not None and not whole and (isinstance(keep, (int, float)) or not callable(keep)):
            raise InputError(
                f"keep must be the number of newest iterates to keep, at least 1, or a schedule such as every(1000), "
                f"not {keep!r}."
            )
        return cls(subset, dtype, bool(optimizer_state), bool(compress), keep)

    def names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that are stored.

        Raises:
            InputError: A glob matches none.
        """
        parameters = model_state.named_parameters(model)
        if self.subset is None:
            return list(parameters)
        return Layout({name: p.shape for name, p in parameters.items()}, parameter_names.aliases(model)).select(
            self.subset
        )

    def content(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Any]:
        """The model's and the optimizers' part of an iterate, as references."""
        content = model_state.snapshot(model)
        chosen = None
        if self.subset is not None:
            chosen = {id(p) for name, p in model_state.named_parameters(model).items() if name in self.names(model)}
            names = self.names(model)
            content["parameters"] = {name: content["parameters"][name] for name in names}
            content["trainable"] = [name for name in content["trainable"] if name in content["parameters"]]
        if not self.optimizer_state:
            return {**content, "optimizer": None}
        return {**content, **model_state.optimizer_content(optimizers, chosen)}

    def lossy(self) -> str:
        """Why training cannot go on from what is stored, empty where it can."""
        parts = []
        if self.subset is not None:
            parts.append(f"only the parameters {', '.join(self.subset)}")
        if self.dtype is not None:
            parts.append(f"numbers rounded to {type_name(self.dtype)}")
        if not self.optimizer_state:
            parts.append("no optimizer state")
        return " and ".join(parts)

    def drop(self, folder: Path, newest: int) -> None:
        """Remove the iterates that are not to be kept, now that the newest one is on the disk."""
        if self.keep is None:
            return
        steps = [step for step in store.stored_steps(folder) if step <= newest]
        for step in steps[:-1] if callable(self.keep) else steps[: -self.keep]:
            if not callable(self.keep) or not self.keep(step):
                store.iterate_path(folder, step).unlink(missing_ok=True)

    def to_json(self) -> dict[str, Any]:
        """What the manifest says; only what differs from the default."""
        found = {
            "subset": list(self.subset) if self.subset is not None else None,
            "dtype": type_name(self.dtype) if self.dtype is not None else None,
            "optimizer_state": None if self.optimizer_state else False,
            "compress": self.compress or None,
            "keep": None if self.keep is None else repr(self.keep),
        }
        return {key: value for key, value in found.items() if value is not None}


def stored_lossy(manifest: dict[str, Any]) -> str:
    """Why training cannot go on from the iterates of a stored run, by its manifest; empty where it can."""
    storage = manifest.get("storage", {})
    subset = storage.get("subset")
    dtype = getattr(torch, str(storage.get("dtype")), None)
    return Storage(
        tuple(map(str, subset)) if isinstance(subset, list) else None,
        dtype if isinstance(dtype, torch.dtype) else None,
        storage.get("optimizer_state", True),
    ).lossy()
