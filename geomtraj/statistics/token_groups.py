"""Loss, gradient and curvature by how frequent a token or class is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geomtraj.errors import InputError
from geomtraj.linalg import trace
from geomtraj.operators import Hessian
from geomtraj.operators.guard import check_derivatives
from geomtraj.problem import Problem
from geomtraj.statistics.base import STRATEGY, Outcome, Point, Quantity, Statistic, without
from geomtraj.status import Code, Remark, Status
from geomtraj.trees import arrays_of


@dataclass(frozen=True)
class TokenGroups(Statistic):
    """The mean loss L_k, |grad L_k| and tr Hessian(L_k) of the labels in each group k, by frequency.

    "loss 1", "gradient 1" and "curvature 1" belong to the most frequent labels, and so on. Labels are sorted by
    their frequency in the problem's batches and cut into groups that hold about equal shares of all of them, so that a
    group is one frequent label or many rare ones. The labels are the last integer array of a batch that has the losses'
    shape, or the array that `labels` counts to. Loss and gradient are exact, the trace has the interval of its probes.

    Cost: a gradient and `probes` products for each group, and four passes over the batches.

    Attributes:
        groups: Number of groups at most; less where few labels make up most of the data.
        probes: Products for each trace.
        labels: Which array of a batch holds the labels, counted from 0; None to find it.
        seed: Of the probes.

    Source: Kunstner et al. (2024), arXiv 2402.19449.
    """

    name = "token_groups"
    title = "loss, gradient and curvature by frequency"

    groups: int = 4
    probes: int = 8
    labels: int | None = None
    seed: int = 0

    def measure(self, point: Point) -> Outcome:
        """The numbers of each group at one iterate."""
        problem = point.problem
        place, counts = self._counted(point)
        if place is None:
            return without(
                "no integer array of the batches has the shape of the losses: say by labels=... which array holds the "
                "labels",
                Code.LEFT_OUT,
            )
        members = grouped(counts, self.groups)
        check_derivatives(problem, point.theta)
        quantities: dict[str, Quantity] = {}
        remarks: list[Remark] = []
        details: dict[str, Any] = {"groups": [], "array": place}
        spent = 0
        for number, chosen in enumerate(members, start=1):
            part = _restricted(problem, place, chosen)
            gradient = part.gradient(point.theta)
            found = trace(Hessian(part, point.theta, STRATEGY), max(self.probes, 1), self.seed)
            spent += found.matvecs
            quantities[f"loss {number}"] = Quantity.exact(float(part.loss(point.theta)))
            quantities[f"gradient {number}"] = Quantity.exact(float(gradient.norm()))
            quantities[f"curvature {number}"] = Quantity.with_sem(found.value, found.sem)
            share = float(counts[chosen].sum() / counts.sum())
            details["groups"].append({"labels": len(chosen), "share": share, "most": chosen[:5].tolist()})
        if len(members) < self.groups:
            text = f"{len(members)} groups: few labels make up most of the data"
            remarks.append(Remark(Code.NOTE, text))
        return Outcome(quantities, details, Status(remarks), spent)

    def _counted(self, point: Point) -> tuple[int | None, Tensor]:
        """Which array holds the labels, and how often each occurs with a positive weight."""
        problem, place, counts = point.problem, self.labels, torch.zeros(0, dtype=torch.float64)
        parameters = problem.layout.unflatten(point.theta)
        with problem.session():
            for batch in problem.batches:
                losses, weights = problem.values(parameters, batch)
                arrays = [torch.as_tensor(a) for a in arrays_of(batch)]
                fits = [i for i, a in enumerate(arrays) if _whole(a) and a.shape == losses.shape[: a.dim()] and a.dim()]
                if place is None:
                    if not fits:
                        return None, counts
                    place = fits[-1]
                if place not in fits:
                    raise InputError(
                        f"array {place} of a batch does not hold one label for each loss: its arrays have the shapes "
                        f"{', '.join(str(tuple(a.shape)) for a in arrays)}, the losses {tuple(losses.shape)}."
                    )
                labels = arrays[place]
                kept = labels >= 0
                if weights is not None:
                    kept &= weights.reshape(*labels.shape, -1).sum(-1).cpu() > 0
                more = torch.bincount(labels[kept].reshape(-1).cpu()).double()
                size = max(len(counts), len(more))

                counts, more = (torch.nn.functional.pad(c, (0, size - len(c))) for c in (counts, more))
                counts = counts + more
        return place, counts


def _whole(array: Tensor) -> bool:
    return not array.is_floating_point() and not array.is_complex() and array.dtype is not torch.bool


def grouped(counts: Tensor, groups: int) -> list[Tensor]:
    """Labels in groups of about equal shares of all that occur, the most frequent ones first; no group is empty."""
    order = torch.argsort(counts, descending=True, stable=True)
    order = order[counts[order] > 0]
    before = counts[order].cumsum(0) - counts[order]
    place = (before / counts.sum() * groups + 1e-9).floor().long().clamp(max=groups - 1)
    return [order[place == k] for k in place.unique().tolist()]


def _restricted(problem: Problem, place: int, chosen: Tensor) -> Problem:
    """The mean loss of the labels in a group."""
    original: Callable[..., Any] = problem.objective.loss

    def loss(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        labels = torch.as_tensor(list(arrays_of(batch))[place])
        found = original(model, batch)
        losses, weights = found if isinstance(found, tuple) else (found, torch.ones_like(found))
        inside = torch.isin(labels, chosen.to(labels.device)).to(losses.device, losses.dtype)
        inside = inside.reshape(*inside.shape, *[1] * (losses.dim() - inside.dim()))
        weights = weights.reshape(*weights.shape, *[1] * (losses.dim() - weights.dim()))
        return losses, (weights * inside).detach()

    return Problem(problem.model, loss, problem.batches, list(problem.layout), problem.mode, blocks=False, check=False)
