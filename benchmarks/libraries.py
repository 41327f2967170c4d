"""Hessian and Gauss-Newton operators of geomtraj and of its peers for one model, loss and batch."""

from __future__ import annotations

from collections.abc import Callable

import curvlinops
import hessian_eigenthings
import pyhessian
import torch
from common import Trained, trained
from large import LARGE, large
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import geomtraj as gt

PEERS = ("hessian-eigenthings", "curvlinops", "pyhessian")
"""The distributions are called the same, but for curvlinops-for-pytorch."""
Product = Callable[[Tensor], object]


def prepared(name: str, device: torch.device) -> Trained:
    """The model of that name and its data on the device."""
    case = large(name) if name in LARGE else trained(name)
    case.model.to(device)
    case.data = [(x.to(device), y.to(device)) for x, y in case.data]
    return case


def device_of(case: Trained) -> torch.device:
    """Where the model lies."""
    return next(case.model.parameters()).device


def merged(case: Trained) -> tuple[Tensor, Tensor]:
    """All data as one batch, since some peers average over batches whatever their sizes."""
    return torch.cat([x for x, _ in case.data]), torch.cat([y for _, y in case.data])


def problem_of(case: Trained) -> gt.Problem:
    """The same model, loss and single batch for geomtraj."""
    return gt.Problem(
        case.model, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        [merged(case)],
    )  # fmt: skip


def gradient_of(case: Trained) -> Callable[[], object]:
    """One gradient of the mean loss over all data by plain autograd, with the attention that products use."""
    x, y = merged(case)
    parameters = list(case.model.parameters())

    def gradient() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.autograd.grad(nn.functional.cross_entropy(case.model(x), y), parameters)

    return gradient


def factories(case: Trained, problem: gt.Problem) -> dict[str, dict[str, Callable[[], Product]]]:
    """Matrix -> library -> what makes its operator anew and gives its product with a vector (P,)."""
    batch = merged(case)
    return {
        "hessian": {
            "geomtraj": lambda: gt.Hessian(problem).__matmul__,
            "hessian-eigenthings": lambda: in_math(eigenthings(case, batch).matvec),
            "curvlinops": lambda: in_math(linops(case, batch).__matmul__),
            "pyhessian": lambda: pyhessian_product(case, batch),
        },
        "ggn": {
            "geomtraj": lambda: gt.GGN(problem).__matmul__,
            "hessian-eigenthings": lambda: in_math(eigenthings_ggn(case, batch).matvec),
            "curvlinops": lambda: in_math(linops(case, batch, curvlinops.GGNLinearOperator).__matmul__),
        },
    }


def in_math(function: Callable) -> Callable:
    """Without fused attention, which has no second derivative."""

    def inside(*arguments: object) -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return function(*arguments)

    return inside


def eigenthings(case: Trained, batch: tuple[Tensor, Tensor]) -> hessian_eigenthings.HessianOperator:
    """The peer's operator."""
    loss = hessian_eigenthings.supervised_loss(nn.CrossEntropyLoss())
    return hessian_eigenthings.HessianOperator(case.model, [batch], loss)


def eigenthings_ggn(case: Trained, batch: tuple[Tensor, Tensor]) -> hessian_eigenthings.GGNOperator:
    """The peer's operator."""
    of_output = hessian_eigenthings.supervised_loss_of_output(nn.CrossEntropyLoss())
    return hessian_eigenthings.GGNOperator(case.model, [batch], hessian_eigenthings.supervised_forward, of_output)


def linops(
    case: Trained, batch: tuple[Tensor, Tensor], kind: type = curvlinops.HessianLinearOperator
) -> curvlinops.HessianLinearOperator:
    """The peer's operator."""
    parameters = list(case.model.parameters())
    return kind(
        case.model, nn.CrossEntropyLoss(), parameters, [batch], check_deterministic=False, num_data=len(batch[1]),
        batch_size_fn=lambda x: x.numel() if case.tokens else len(x),
    )  # fmt: skip


def pyhessian_product(case: Trained, batch: tuple[Tensor, Tensor]) -> Callable[[Tensor], object]:
    """The peer's product by the graph that it keeps."""
    with sdpa_kernel(SDPBackend.MATH):
        peer = pyhessian.hessian(case.model, nn.CrossEntropyLoss(), data=batch, cuda=device_of(case).type == "cuda")
    shapes = [p.shape for p in peer.params]

    def product(vector: Tensor) -> object:
        parts = vector.split([s.numel() for s in shapes])
        along = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return pyhessian.hessian_vector_product(peer.gradsH, peer.params, along)

    return product
