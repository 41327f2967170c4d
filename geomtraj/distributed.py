"""Several processes that share the batches of one Problem: sums over them, agreement, and what happens on failure."""

from __future__ import annotations

import itertools
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from geomtraj.errors import ComputationError, InputError
from geomtraj.failures import is_out_of_memory

T = TypeVar("T")

DIGEST_CHUNK = 2**20
POLL_SECONDS = 1e-4
DEADLINE_SHARE = 0.9
"""Share of NCCL's own timeout after which we stop: when it is over, NCCL ends the process without an exception."""


def shard(batches: Iterable[Any], group: dist.ProcessGroup) -> list[Any]:
    """This process's share of the batches: consecutive ones, as many on each process as on the next or one more.

    Args:
        batches: All batches, the same on every process: a list, or a DataLoader without shuffling.
        group: The processes that share them, such as `torch.distributed.group.WORLD`.

    Raises:
        InputError: `group` is no process group that this process belongs to.
    """
    _check(group)
    rank, size = group.rank(), group.size()
    total = len(batches) if isinstance(batches, Sized) else sum(1 for _ in batches)
    return list(itertools.islice(batches, total * rank // size, total * (rank + 1) // size))


def digest(tensor: Tensor) -> int:
    """A number made of all bits of a tensor: tensors that differ in any bit differ in it, but for accidents."""
    words = tensor.detach().contiguous().flatten()
    if words.is_floating_point():
        words = words.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[words.element_size()])
    index = torch.arange(min(words.numel(), DIGEST_CHUNK), device=words.device) * 0x1E3779B97F4A7C15
    factors = (index ^ (index >> 29)) | 1
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for chunk in words.split(DIGEST_CHUNK):
        chunk = chunk.to(torch.int64)
        chunk = chunk ^ (chunk >> 31)  # or flipped signs would only change the highest bit of the sum
        total = total * 0x2545F4914F6CDD1D + (chunk * factors[: chunk.numel()]).sum()
    return int(total)


class Ranks:
    """The processes of a group, which make the same calls in the same order.

    Before each sum they tell each other what they are about to add, through a gloo group of their own on the CPU, so
    that processes that are out of step are found out before a wrong number or an endless wait comes of it.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    def __init__(self, group: dist.ProcessGroup):
        self.rank, self.size = group.rank(), group.size()
        self._group = group
        self._timeout = _timeout(group)
        self._errors = 0
        self._depth = 0
        self._past = 0
        self._lost = ""
        with self._listening():
            members = dist.get_process_group_ranks(group)
            self._control = dist.new_group(members, self._timeout, backend="gloo", use_local_synchronization=True)

    @staticmethod
    def of(group: dist.ProcessGroup) -> Ranks:
        """The processes of this group; the same object each time.

        Raises:
            InputError: It is no process group that this process belongs to.
            ComputationError: A process does not answer.
        """
        _check(group)
        if group not in _KNOWN:
            _KNOWN[group] = Ranks(group)
        return _KNOWN[group]

    def __reduce__(self) -> Any:
        raise InputError(
            "a Problem that several processes share cannot be copied or sent to an executor: "
            "leave out group= there, or measure without an executor."
        )

    def note(self, tensor: Tensor) -> None:
        """Remembers a tensor that must have the same bits on all processes; the next sum compares."""
        self._past = (31 * self._past + digest(tensor)) % 2**62

    @contextmanager
    def errors_noted(self) -> Iterator[None]:
        """Counts the errors that leave it: if the others did not meet them too, the next sum says so and adds nothing.

        Inside another one nothing is counted, nor is a lack of memory: what raised may be tried in another way.
        """
        self._depth += 1
        try:
            yield
        except Exception as error:
            memory = is_out_of_memory(error)
            self._errors += self._depth == 1 and not memory
            raise
        finally:
            self._depth -= 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, the same bits on each of them; may overwrite the tensor.

        Raises:
            ComputationError: A process is lost, does not answer in time, met an error, or is out of step.
        """
        self._compare(f"{tuple(tensor.shape)} {tensor.dtype}")
        total = tensor.detach().contiguous()
        if total.device.type != "cuda":
            total = total.cpu()
            with self._listening():
                dist.all_reduce(total, group=self._control)
            return total.to(tensor.device)
        with self._listening():
            work = dist.all_reduce(total, group=self._group, async_op=True)
            deadline = time.monotonic() + DEADLINE_SHARE * self._timeout.total_seconds()
            while not work.is_completed():  # work.wait() would not come back when a process is lost
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the sum did not arrive within {DEADLINE_SHARE * self._timeout}")
                time.sleep(POLL_SECONDS)
            work.wait()
        return total

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What `make()` gives on each process, in their order; an error on one of them is an error on all.

        Raises:
            InputError, ComputationError: `make()` failed on another process, or a process does not answer.
        """
        self._compare("objects")
        before = self._errors, self._past
        mine, error = None, None
        try:
            mine = make()
        except Exception as caught:
            error = caught
        text = None if error is None else f"{type(error).__name__}: {error}"
        answers: list[Any] = [None] * self.size
        with self._listening():
            dist.all_gather_object(answers, (mine, text, isinstance(error, InputError)), group=self._control)
        if any(failure is not None for _, failure, _ in answers):
            self._errors, self._past = before  # all know, so all are in step again
        if error is not None:
            raise error
        for rank, (_, failure, of_input) in enumerate(answers):
            if failure is not None:
                kind = InputError if of_input else ComputationError
                raise kind(f"process {rank} of {self.size} met an error in its part: {failure}")
        return [answer for answer, _, _ in answers]

    def _compare(self, kind: str) -> None:
        """Tells the others what comes next; all go on only if all are about to do the same."""
        header = torch.tensor([self._errors, self._past, zlib.crc32(kind.encode())])
        headers = [torch.empty_like(header) for _ in range(self.size)]
        with self._listening():
            dist.all_gather(headers, header, group=self._control)
        errors, pasts, kinds = torch.stack(headers).T.tolist()
        if len(set(errors)) > 1:
            raise ComputationError(
                f"process {errors.index(max(errors))} of {self.size} met an error while it evaluated its batches, so "
                "the sum over processes is not complete: its own output says more; start all processes again."
            )
        if len(set(pasts)) > 1 or len(set(kinds)) > 1:
            odd = next(r for r in range(self.size) if (pasts[r], kinds[r]) != (pasts[0], kinds[0]))
            raise ComputationError(
                f"processes 0 and {odd} of {self.size} are out of step: they evaluate at different parameters or "
                "multiply different vectors; make the same calls in the same order with the same seeds on each, on "
                "machines of one kind."
            )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turns what torch.distributed raises into one sentence, and lets the others know."""
        if self._lost:
            raise ComputationError(self._lost)
        try:
            yield
        except (RuntimeError, TimeoutError, OSError) as error:
            self._lost = (
                f"process {self.rank} of {self.size} lost another process: it was killed, stopped with an error (its "
                "own output says which), made fewer calls, or did not answer within "
                f"{self._timeout.total_seconds():g} s, the timeout given to torch.distributed.init_process_group; "
                "start all processes again."
            )
            self._hang_up(error)
            raise ComputationError(self._lost) from error

    def _hang_up(self, error: BaseException) -> None:
        """Closes this process's connections, on which processes that do not notice the loss themselves may wait."""
        control = self.__dict__.pop("_control", None)
        traceback.clear_frames(error.__traceback__)  # they hold the group, and it closes when nothing does
        if control is not None:
            with suppress(Exception):
                dist.destroy_process_group(control)


_KNOWN: WeakKeyDictionary[dist.ProcessGroup, Ranks] = WeakKeyDictionary()


def _check(group: Any) -> None:
    if not isinstance(group, dist.ProcessGroup):
        raise InputError(
            f"group is {group!r}: call torch.distributed.init_process_group() first, then pass "
            "torch.distributed.group.WORLD or a group that this process belongs to."
        )


def _timeout(group: dist.ProcessGroup) -> timedelta:
    """How long the group waits for a process, as its maker set it."""
    for name in ("cpu", "cuda"):
        with suppress(Exception):
            return group._get_backend(torch.device(name)).options._timeout
    return dist.default_pg_timeout
