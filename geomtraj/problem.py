"""Problem: a model, a loss and batches become one function L(theta) of a flat parameter vector."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from geomtraj import determinism
from geomtraj.distributed import Ranks
from geomtraj.errors import ComputationError, InputError
from geomtraj.failures import in_one_sentence
from geomtraj.fingerprint import fingerprint
from geomtraj.isolation import in_plain_torch
from geomtraj.objective import Loss
from geomtraj.preparation import Normalised, Part, agree, normalise
from geomtraj.preparation import check as check_passes
from geomtraj.splitting import arranged

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Problem:
    """The loss L(theta) = sum(w * losses) / sum(w) over all batches, as a function of the selected parameters.

    Args:
        model: The network. It is left as it was found: parameters, gradients, buffers, flags.
        loss: `loss(model, batch)` gives `losses` or `(losses, weights)`, unreduced: the first axis counts
            examples, which do not depend on each other; any further axes are tokens, pixels and the like.
            Weights have the shape of the losses, or its leading part, and do not depend on the parameters.
            A criterion of torch's, such as `nn.CrossEntropyLoss()`, may stand for it (`gt.losses.from_criterion`).
        batches: A finite collection that can be iterated again and again, a list or a DataLoader without
            shuffling. Its elements are whatever `loss` takes.
        params: None for every parameter that requires a gradient, else a glob or a list of globs on the names of
            `model.named_parameters()`. Tied weights are one parameter, found under each of their names.
        mode: "eval" or "train", the mode in which the model is measured.
        blocks: What numbers per layer belong to. None: each parameter is a block, but for fused query-key-value
            matrices that are recognised, which are split into their three parts. False: each parameter is one. Else a
            mapping {glob: gt.split(...), name: gt.join(...)}, whose entries are carried out in their order; of the
            parameters that it does not name, fused ones are split as with None. theta stays as it is.
        group: The torch.distributed process group, such as `torch.distributed.group.WORLD`, whose processes each pass
            their own share of the batches (`geomtraj.distributed.shard`) and make the same calls; a share may be empty.
            Every process gets the numbers of all batches together. None: this process's batches are all there are.
        check: Whether to hold second derivatives against differences of gradients before the first of them is used,
            and losses against the rows of their batch. False is for who knows better; the status of results says so.

    Attributes:
        model: The module that is measured, without its `torch.compile` wrapping.
        layout: Ordered map from parameter name to its slice and shape.
        blocks: Ordered map from block name to `geomtraj.blocks.Block`.
        total_weight: sum(w) over all batches, of all processes.
        examples: Number of examples N, of all processes.
        first_example: Number of examples on the processes before this one: where its own start among the N.
        rank: Number of this process in its group, 0 where there is one.
        unused: Names of selected parameters that the loss does not reach: their rows of the Hessian are zero.
        check: Whether derivatives are checked.
        guard: What the check found and cost (`geomtraj.operators.Guard`); None before the first second derivative.

    Raises:
        InputError: The arguments do not make a deterministic function, or not the same one on each process; the message
            names the likely culprit.
        ComputationError: Another process failed or does not answer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        params: str | Iterable[str] | None = None,
        mode: str = "eval",
        *,
        blocks: Mapping[str, Any] | Literal[False] | None = None,
        group: ProcessGroup | None = None,
        check: bool = True,
    ):
        ranks = None if group is None else Ranks.of(group)
        made: list[Normalised] = []

        def own_part() -> Part:
            made.append(normalise(model, loss, batches, params, mode, ranks))
            return check_passes(made[0], blocks, strict=check)

        parts = [own_part()] if ranks is None else ranks.gather(own_part)
        (normal,), rank = made, 0 if ranks is None else ranks.rank
        agreed = agree(parts, rank, normal.layout, warn=check)
        first = next(iter(normal.parameters().values()))
        self._normal, self._ranks, self._batches = normal, ranks, normal.batches
        self.objective, self.layout = normal.objective, normal.layout
        self.model, self.mode = normal.objective.model, mode
        self.objective.differentiates = agreed.differentiates  # on each process the objective behaves in the same way
        self.blocks = arranged(normal.layout, agreed.recognised, blocks)
        self.dtype, self.device, self.rank = first.dtype, first.device, rank
        self.examples, self.first_example, self.total_weight, self.unused = agreed[:4]
        self.check = check
        self.guard: Any = None
        self.gradient_refusal: str | None = None

    @property
    def size(self) -> int:
        """Number P of selected parameters' entries."""
        return self.layout.size

    @in_plain_torch
    def theta(self) -> Tensor:
        """A copy, shape (P,), of the selected parameters as they are now."""
        return self.layout.flatten({name: p.detach() for name, p in self._normal.parameters().items()}).clone()

    @in_plain_torch
    def loss(self, theta: Tensor | None = None) -> Tensor:
        """L(theta), a 0-d tensor; at the current parameters if theta is left out.

        Raises:
            InputError: theta does not fit the layout.
        """
        parameters = self.layout.unflatten(self.checked(theta))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with in_one_sentence(), self.session():
            for batch in self._batches:
                total += self.value(parameters, batch)
        return (self.over_ranks(total) / self.total_weight).to(self.dtype)

    @in_plain_torch
    def gradient(self, theta: Tensor | None = None) -> Tensor:
        """The gradient of L, shape (P,); at the current parameters if theta is left out.

        Raises:
            InputError: theta does not fit the layout.
            ComputationError: No selected parameter reaches the loss.
        """
        if len(self.unused) == len(self.layout):
            raise ComputationError(_UNREACHED)
        parameters = leaves(self.layout.unflatten(self.checked(theta)))
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with in_one_sentence(), self.session(), self.holding(parameters):
            for batch in self._batches:
                value = self.batch_sum(parameters, batch)
                if not value.requires_grad:
                    continue
                grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
                total += torch.cat([dense(g).reshape(-1) for g in grads])
        return self.over_ranks(total) / self.total_weight

    def select(self, globs: str | Iterable[str]) -> list[str]:
        """Names of the selected parameters that match the globs, in layout order."""
        return self.layout.select(globs)

    @property
    def batch_statistics(self) -> list[str]:
        """Names of modules whose statistics of the batch let examples interact in this mode."""
        return determinism.batch_statistics(self.model, self.mode)

    # What operators and estimators build on.

    @property
    def shared(self) -> bool:
        """Whether several processes share the batches: an error on one is then an error on all."""
        return self._ranks is not None

    @property
    def batches(self) -> Iterable[Any]:
        """The batches of this process, in their fixed order."""
        return self._batches

    def checked(self, theta: Tensor | None) -> Tensor:
        """A copy of theta if it fits the layout; of the current parameters if it is None."""
        theta = self._fitting(theta)
        if self._ranks is not None:
            self._ranks.note(theta)
        return theta

    def _fitting(self, theta: Tensor | None) -> Tensor:
        if theta is None:
            return self.theta()
        if not isinstance(theta, Tensor) or theta.shape != (self.size,):
            shape = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
            raise InputError(f"theta must be a tensor of shape ({self.size},) as problem.theta() gives, not {shape}.")
        if theta.dtype != self.dtype or theta.device != self.device:
            raise InputError(
                f"theta is {theta.dtype} on {theta.device}, the model {self.dtype} on {self.device}: move one of them."
            )
        return theta.detach().clone()

    @contextmanager
    def session(self) -> Iterator[None]:
        """Everything that an evaluation needs set, and everything put back at the end, also after an error."""
        with self._normal.session():
            yield

    def holding(self, parameters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """The model holds these values: in backward passes too, where checkpointed blocks are computed once more."""
        return self.objective.holding(parameters)

    def losses(self, parameters: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor | None]:
        """Unreduced losses (B, ...) of one batch and their weights in the same shape, or None for ones.

        The loss gets a copy of the batch, so that it may write into it. Call it inside `session()`, with gradients
        enabled: a loss may take derivatives itself.

        Raises:
            InputError: The loss returned something else, or fails on this batch.
        """
        return self.objective.losses(parameters, batch)

    def values(self, parameters: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor | None]:
        """Losses and weights as by `losses`, but without a graph. Call it inside `session()`."""
        losses, weights = self.losses(parameters, batch)
        return losses.detach(), weights

    def value(self, parameters: Mapping[str, Tensor], batch: Any) -> Tensor:
        """sum(w * losses) of one batch as by `batch_sum`, but without a graph. Call it inside `session()`."""
        losses, weights = self.values(parameters, batch)
        return losses.sum() if weights is None else (losses * weights).sum()

    def batch_sum(self, parameters: Mapping[str, Tensor], batch: Any) -> Tensor:
        """sum(w * losses) of one batch, 0-d; L is the sum of these over `total_weight`. Call it inside `session()`."""
        losses, weights = self.losses(parameters, batch)
        return losses.sum() if weights is None else (losses * weights).sum()

    def over_ranks(self, tensor: Tensor, of: Tensor | None = None) -> Tensor:
        """The sum of a tensor over all processes that share the batches; the tensor itself where there is one.

        Every process gets the same bits. The tensor that was passed may be overwritten.

        Args:
            tensor: This process's part, of the same shape on each.
            of: What the sum is a function of besides theta (the vectors of a product): compared between processes.

        Raises:
            ComputationError: A process is lost, met an error, does not answer in time, or computes something else.
        """
        if self._ranks is None:
            return tensor
        if of is not None:
            self._ranks.note(of)
        return self._ranks.sum(tensor)

    def on_ranks(self, make: Callable[[], T]) -> list[T]:
        """What `make()` gives on each process, in the order of their ranks; an error on one is an error on all.

        Raises:
            InputError, ComputationError: `make()` failed on another process, or a process does not answer.
        """
        return [make()] if self._ranks is None else self._ranks.gather(make)

    @in_plain_torch
    def fingerprint(self) -> str:
        """A short name of the function that is measured: the same for the same L, however it is written or cut.

        It is made of the losses at fixed values of all parameters, so that it does not depend on where on a trajectory
        the model stands, besides the parameters' names and shapes, the blocks, dtype and mode; made anew in each call.

        Raises:
            InputError: The loss is no longer the one that this Problem was made of: its weights have another sum.
        """
        structure = "\n".join([repr(self.layout), self.blocks.signature(), str(self.dtype), self.mode])
        with self.session():
            found = fingerprint(self.objective, list(self.layout), self._batches, structure, self.over_ranks)
        if math.isfinite(found.weight) and not math.isclose(found.weight, self.total_weight, rel_tol=1e-5):
            raise InputError(
                f"the weights of the losses sum to {found.weight:g}, and to {self.total_weight:g} when this Problem "
                "was made: the loss or the batches have changed, so make a new gt.Problem."
            )
        return found.name


_UNREACHED = (
    "no selected parameter reaches the loss: loss(model, batch) must compute with the model it is given, "
    "without torch.no_grad() or .detach() on the way."
)


def leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as fresh leaf tensors that require gradients."""
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}


def dense(gradient: Tensor) -> Tensor:
    """A gradient as an ordinary tensor: an embedding may give a sparse one."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()
