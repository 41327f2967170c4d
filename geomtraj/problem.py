"""Problem: a model, a loss and batches become one function L(theta) of a flat parameter vector."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from geomtraj.distributed import Ranks, digest
from geomtraj.errors import ComputationError, InputError
from geomtraj.failures import in_one_sentence
from geomtraj.inputs import checked_batches, checked_losses, digest_of, selected
from geomtraj.isolation import (
    exact_arithmetic,
    one_at_a_time,
    preserved_model,
    preserved_rng,
    twice_differentiable,
    uncompiled,
    unwrap,
)
from geomtraj.recognised import fused, kinds
from geomtraj.splitting import arranged

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
Loss = Callable[[nn.Module, Any], "Tensor | tuple[Tensor, Tensor]"]


class Problem:
    """The loss L(theta) = sum(w * losses) / sum(w) over all batches, as a function of the selected parameters.

    Args:
        model: The network. It is left as it was found: parameters, gradients, buffers, flags.
        loss: `loss(model, batch)` gives `losses` or `(losses, weights)`, unreduced: the first axis counts
            examples, which do not depend on each other; any further axes are tokens, pixels and the like.
            Weights have the shape of the losses, or its leading part, and do not depend on the parameters.
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

    Attributes:
        model: The module that is measured, without its `torch.compile` wrapping.
        layout: Ordered map from parameter name to its slice and shape.
        blocks: Ordered map from block name to `geomtraj.blocks.Block`.
        total_weight: sum(w) over all batches, of all processes.
        examples: Number of examples N, of all processes.
        first_example: Number of examples on the processes before this one: where its own start among the N.
        rank: Number of this process in its group, 0 where there is one.
        unused: Names of selected parameters that the loss does not reach: their rows of the Hessian are zero.

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
    ):
        self._ranks = None if group is None else Ranks.of(group)
        self.rank = 0 if self._ranks is None else self._ranks.rank
        self._combine(self.on_ranks(lambda: self._own_part(model, loss, batches, params, mode, blocks)))

    def _own_part(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Iterable[Any],
        params: str | Iterable[str] | None,
        mode: str,
        blocks: Any,
    ) -> _Part:
        if not isinstance(model, nn.Module):
            raise InputError(f"the model must be a torch.nn.Module, not {type(model).__name__}.")
        if not callable(loss):
            raise InputError(f"the loss must be a function loss(model, batch), not {type(loss).__name__}.")
        if mode not in ("eval", "train"):
            raise InputError(f"mode is {mode!r}: choose 'eval' or 'train'.")
        self.model = unwrap(model)
        if isinstance(
            self.model, nn.parallel.DistributedDataParallel
        ):  # its forward pass waits for the other processes
            self.model = unwrap(self.model.module)
        wrapped = any(type(m).__name__ == "FullyShardedDataParallel" for m in self.model.modules())
        if wrapped or any(hasattr(p, "full_tensor") for p in self.model.parameters()):
            raise InputError(
                "the model's parameters are sharded over processes (FSDP or DTensor): load the whole model on each, "
                "and share the batches by group=."
            )
        self.mode = mode
        self._loss = loss
        self._batches = checked_batches(batches, may_be_empty=self._ranks is not None)
        self.layout = selected(self.model, params)
        self.blocks = arranged(self.layout, kinds(self.model, self.layout), fused(self.model, self.layout), blocks)
        self._caller = _Caller(self.model, loss)
        first = next(iter(self._parameters().values()))
        self.dtype, self.device = first.dtype, first.device
        return self._probe()

    @property
    def size(self) -> int:
        """Number P of selected parameters' entries."""
        return self.layout.size

    def theta(self) -> Tensor:
        """A copy, shape (P,), of the selected parameters as they are now."""
        return self.layout.flatten({name: p.detach() for name, p in self._parameters().items()}).clone()

    def loss(self, theta: Tensor | None = None) -> Tensor:
        """L(theta), a 0-d tensor; at the current parameters if theta is left out.

        Raises:
            InputError: theta does not fit the layout.
        """
        parameters = self.layout.unflatten(self.checked(theta))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.session(), torch.no_grad():
            for batch in self._batches:
                total += self.batch_sum(parameters, batch)
        return (self.over_ranks(total) / self.total_weight).to(self.dtype)

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
        with self.session(), self.holding(parameters):
            for batch in self._batches:
                value = self.batch_sum(parameters, batch)
                if not value.requires_grad:
                    continue
                grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
                total += torch.cat([g.reshape(-1) for g in grads])
        return self.over_ranks(total) / self.total_weight

    def select(self, globs: str | Iterable[str]) -> list[str]:
        """Names of the selected parameters that match the globs, in layout order."""
        return self.layout.select(globs)

    @property
    def batch_statistics(self) -> list[str]:
        """Names of modules whose statistics of the batch let examples interact in this mode."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
        return [
            name
            for name, m in self.model.named_modules()
            if isinstance(m, kinds[0]) and (self.mode == "train" or not m.track_running_stats)
        ]

    # What operators and estimators build on.

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
        own_generator = getattr(self._batches, "generator", None)
        with ExitStack() as stack:
            stack.enter_context(one_at_a_time())
            stack.enter_context(preserved_rng([own_generator] if isinstance(own_generator, torch.Generator) else []))
            stack.enter_context(preserved_model(self.model, self.mode == "train"))
            stack.enter_context(exact_arithmetic())
            stack.enter_context(uncompiled())
            stack.enter_context(twice_differentiable(self.model))
            stack.enter_context(torch.enable_grad())
            if self._ranks is not None:
                stack.enter_context(self._ranks.errors_noted())
            yield

    @contextmanager
    def holding(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        """The model holds these values: in backward passes too, where checkpointed blocks are computed once more."""
        with _reparametrize_module(self.model, dict(parameters), tie_weights=True):
            yield

    def losses(self, parameters: Mapping[str, Tensor], batch: Any) -> tuple[Tensor, Tensor | None]:
        """Unreduced losses (B, ...) of one batch and their weights in the same shape, or None for ones.

        Call it inside `session()`.

        Raises:
            InputError: The loss returned something else, or fails on this batch.
        """
        stand_in = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        stand_in |= {f"model.{name}": value for name, value in parameters.items()}
        return checked_losses(torch.func.functional_call(self._caller, stand_in, (batch,)))

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

    def fingerprint(self) -> str:
        """A short hash of what is measured: data, loss code, parameters' names and shapes, dtype, mode."""
        code = getattr(self._loss, "__code__", None)
        parts = [
            self._data_digest,
            getattr(self._loss, "__qualname__", type(self._loss).__qualname__),
            code.co_code.hex() if code else "",
            repr(code.co_names) if code else "",
            repr([c for c in code.co_consts if isinstance(c, (int, float, str, type(None)))]) if code else "",
            repr(self.layout),
            str(self.dtype),
            self.mode,
            *filter(None, [self.blocks.signature()]),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _parameters(self) -> dict[str, Tensor]:
        own = dict(self.model.named_parameters())
        return {name: own[name] for name in self.layout}

    def _probe(self) -> _Part:
        """Two passes over the batches of this process: they must agree; what they tell is handed on."""
        parameters = leaves(self._parameters())
        with in_one_sentence(), self.session():
            first = [self._summary(parameters, batch) for batch in self._batches]
            second = [self._summary(parameters, batch) for batch in self._batches]
        tolerance = 1e3 * torch.finfo(self.dtype).eps
        same = len(first) == len(second) and all(a.agrees(b, tolerance) for a, b in zip(first, second, strict=True))
        if not same:
            raise InputError(self._culprit(first, second))
        return _Part(
            examples=sum(s.losses.shape[0] for s in first),
            weight=sum(s.weight for s in first),
            digests=[s.digest for s in first],
            reached=set().union(*(s.reached for s in first)),
            setting={"mode": self.mode, "params": self._selection(), "dtype": str(self.dtype)},
            tensors={} if self._ranks is None else self._tensor_digests(),
        )

    def _combine(self, parts: list[_Part]) -> None:
        """What the parts of all processes tell together."""
        for rank, part in enumerate(parts):
            for name, value in part.setting.items():
                if value != parts[0].setting[name]:
                    raise InputError(
                        f"{name} differs between the processes: {parts[0].setting[name]} on process 0, {value} on "
                        f"process {rank}; make the same Problem on each."
                    )
            odd = [n for n, value in parts[0].tensors.items() if part.tensors.get(n) != value]
            if odd or len(part.tensors) != len(parts[0].tensors):
                name = odd[0] if odd else next(n for n in part.tensors if n not in parts[0].tensors)
                raise InputError(
                    f"{name!r} of the model differs between process 0 and process {rank}: load the same checkpoint on "
                    "each, or call torch.distributed.broadcast(tensor, 0) for every tensor of model.state_dict()."
                )
        if not any(part.digests for part in parts):
            raise InputError("batches is empty: pass at least one batch.")
        self.examples = sum(part.examples for part in parts)
        self.first_example = sum(part.examples for part in parts[: self.rank])
        self.total_weight = sum(part.weight for part in parts)
        if not self.total_weight > 0:
            raise InputError(
                f"the weights of all batches sum to {self.total_weight:g}: "
                "L(theta) divides by that sum, so give positive weights."
            )
        reached = set().union(*(part.reached for part in parts))
        self.unused = tuple(name for name in self.layout if name not in reached)
        digests = (digest for part in parts for digest in part.digests)
        self._data_digest = hashlib.sha256("".join(digests).encode()).hexdigest()

    def _selection(self) -> str:
        """The selected parameters in short; differs where names, shapes or blocks do."""
        mark = hashlib.sha256((repr(self.layout) + self.blocks.signature()).encode()).hexdigest()[:6]
        return f"{len(self.layout)} tensors with {self.size} entries (layout {mark})"

    def _tensor_digests(self) -> dict[str, int]:
        return {n: digest(t) for n, t in itertools.chain(self.model.named_parameters(), self.model.named_buffers())}

    def _summary(self, parameters: dict[str, Tensor], batch: Any) -> _BatchSummary:
        losses, weights = self.losses(parameters, batch)
        value = losses.sum() if weights is None else (losses * weights).sum()
        reached: set[str] = set()
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            reached = {name for name, grad in zip(parameters, grads, strict=True) if grad is not None}
        weight = float(losses.numel() if weights is None else weights.double().sum())
        return _BatchSummary(losses.detach().double().cpu(), weight, digest_of(batch), reached)

    def _culprit(self, first: list[_BatchSummary], second: list[_BatchSummary]) -> str:
        opening = "two passes over the batches disagree"
        if len(first) != len(second):
            return f"{opening}: {len(first)} batches, then {len(second)}; pass a list of batches."
        if [s.digest for s in first] != [s.digest for s in second]:
            return (
                f"{opening}: the batches themselves change, so the loader is shuffling or draws random augmentations; "
                "pass DataLoader(..., shuffle=False), or list(loader) to fix one pass."
            )
        kinds = (nn.modules.dropout._DropoutNd, nn.RNNBase, nn.MultiheadAttention)
        active = {n: getattr(m, "p", None) or getattr(m, "dropout", None) for n, m in self.model.named_modules()}
        names = [n for n, m in self.model.named_modules() if isinstance(m, kinds) and active[n]]
        if self.mode == "train" and names:
            return f"{opening}: dropout is active in {', '.join(map(repr, names[:3]))}; pass mode='eval'."
        if self.batch_statistics:
            return (
                f"{opening}: {', '.join(map(repr, self.batch_statistics[:3]))} computes batch statistics, "
                "which differ from pass to pass; pass mode='eval'."
            )
        return (
            f"{opening} on the same batches: the model or the loss draws random numbers or keeps a state "
            "(dropout through torch.nn.functional, say); make loss(model, batch) deterministic."
        )


class _Caller(nn.Module):
    """Lets torch.func.functional_call replace parameters under any loss, whichever parts of the model it calls."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model = model
        self._hidden = (loss,)  # a tuple, so that a loss that is a module is not registered as part of this one
        self.training = model.training

    def forward(self, batch: Any) -> Any:
        return self._hidden[0](self.model, batch)


class _Part(NamedTuple):
    """What one process tells of its batches and its model."""

    examples: int
    weight: float
    digests: list[str]
    reached: set[str]
    setting: dict[str, str]
    tensors: dict[str, int]


class _BatchSummary(NamedTuple):
    losses: Tensor
    weight: float
    digest: str
    reached: set[str]

    def agrees(self, other: _BatchSummary, tolerance: float) -> bool:
        """Whether two passes over one batch gave the same losses, up to rounding."""
        if self.losses.shape != other.losses.shape or self.digest != other.digest:
            return False
        scale = float(self.losses.nan_to_num(0, 0, 0).abs().max()) if self.losses.numel() else 0.0
        return torch.allclose(self.losses, other.losses, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


_UNREACHED = (
    "no selected parameter reaches the loss: loss(model, batch) must compute with the model it is given, "
    "without torch.no_grad() or .detach() on the way."
)


def leaves(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as fresh leaf tensors that require gradients."""
    return {name: p.detach().requires_grad_() for name, p in parameters.items()}
