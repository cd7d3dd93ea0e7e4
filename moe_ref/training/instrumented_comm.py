"""A communicator that counts, times, and can give back what it has once received in place of asking again.

The last is TED's communication-aware checkpointing (arXiv 2303.06318, section 4): activations of a block are thrown
away and computed again in backward, but what came from other ranks is kept, so that no exchange is made twice.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from commbench.communicators.communicator import Communicator
from commbench.communicators.prepared import Pending
from commbench.communicators.wrapper import CommWrapper
from moe_ref.profiling import labelled
from moe_ref.training.timers import Mark, Timers

ALL_TO_ALLS = ("all_to_all", "all_to_allv", "tp_all_to_all")


_CHANGED = "a tensor that was received has been changed in place since"


class Stash:
    """All that one pass of one block has received, in order."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()

    def keep(self, value: Any) -> _Kept:
        """Put what was received behind the others."""
        kept = _Kept(value)
        self._kept.append(kept)
        return kept

    def take(self) -> Any:
        """Return the next one."""
        return self._kept.popleft().value()

    def fill(self, out: Tensor) -> None:
        """Copy the next one into `out`, which may be where it came to first (`moe_ref.kept_buffers`) and still is."""
        kept = self._kept.popleft()
        if kept.is_in(out):
            return
        with torch.no_grad():
            out.copy_(kept.value().view(out.shape))


class _Kept:
    def __init__(self, value: Any) -> None:
        self._value = value
        self.settle()

    def settle(self) -> None:
        """Note that it is what it will be: called again when an exchange in flight has ended."""
        self._version = self._value._version if isinstance(self._value, Tensor) else None

    def value(self) -> Any:
        now = self._value._version if isinstance(self._value, Tensor) else None
        assert now == self._version, _CHANGED
        return self._value

    def is_in(self, out: Tensor) -> bool:
        """Say whether `out` is the same memory, of which autograd has been told once that it would be written to."""
        if self._value.data_ptr() != out.data_ptr() or not out.numel():
            return False
        assert self._version is not None and self._value._version == self._version + 1, _CHANGED
        return True


class CommMonitor:
    """Counts and times what all communicators of a training are asked for.

    calls: how often each collective was asked for, and how often it was `stashed` and so not made. sent: bytes that
    this rank has handed to each, its own share included. timers: where times go, "a2a" for all-to-alls from call to
    end, "exposed" for all that the current stream, or this thread, waits, and "exposed_moe" for what of it is the
    expert layers'.
    """

    def __init__(self, timers: Timers) -> None:
        self.timers = timers
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.stashed: Counter[str] = Counter()
        self.keeping: Stash | None = None
        self.giving: Stash | None = None

    def reset(self) -> None:
        """Forget counts; times are `timers`' own."""
        for counts in (self.calls, self.sent, self.stashed):
            counts.clear()

    @property
    def a2a_bytes(self) -> int:
        """Bytes that this rank has handed to all-to-alls."""
        return sum(self.sent[name] for name in ALL_TO_ALLS)

    @property
    def a2a_calls(self) -> int:
        """Calls of all-to-alls."""
        return sum(self.calls[name] for name in ALL_TO_ALLS)

    def contexts(
        self, *, stash: bool
    ) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
        """Return what `LM.forward(contexts=)` takes: blocks are redone with their exchanges, or without (`stash`)."""

        def make() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            kept = Stash() if stash else None
            return self._with(keeping=kept), self._again(giving=kept)

        return make

    @contextmanager
    def _with(self, *, keeping: Stash | None = None, giving: Stash | None = None) -> Iterator[None]:
        before = self.keeping, self.giving
        self.keeping, self.giving = keeping, giving
        try:
            yield
        finally:
            self.keeping, self.giving = before

    @contextmanager
    def _again(self, giving: Stash | None) -> Iterator[None]:
        with labelled("train::redone"), self._with(giving=giving):
            yield


class InstrumentedComm(CommWrapper):
    """Stands for a communicator: the same calls, which are made on it and noted in `monitor`."""

    comm: Communicator

    def __init__(self, comm: Communicator, monitor: CommMonitor, *, of_moe: bool = False) -> None:
        """of_moe: the expert layers', and nobody else's."""
        super().__init__(comm)
        self.monitor = monitor
        self._waits = ("exposed", "exposed_moe") if of_moe else ("exposed",)

    def __getattr__(self, name: str) -> Any:
        """Give what is the communicator's own: layout, empty, prepare, explain, close."""
        return getattr(self.comm, name)

    def add_exposed(self, begin: Mark, end: Mark) -> None:
        """Count the time between the marks as waited for."""
        for name in self._waits:
            self.monitor.timers.add(name, begin, end)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        monitor = self.monitor
        if monitor.giving is not None:
            monitor.stashed["exchange_counts"] += 1
            known: list[list[int]] = monitor.giving.take()
            return known
        monitor.calls["exchange_counts"] += 1
        begin = monitor.timers.mark()
        with labelled("comm::exchange_counts"):
            matrix = self.comm.exchange_counts(sent)
        self.add_exposed(begin, monitor.timers.mark())
        if monitor.keeping is not None:
            monitor.keeping.keep(matrix)
        return matrix

    def _call(self, name: str, out: Tensor, inp: Tensor | None, *, async_op: bool, **arguments: Any) -> Pending | None:
        monitor = self.monitor
        if monitor.giving is not None:
            monitor.stashed[name] += 1
            monitor.giving.fill(out)
            return Pending(None, ()) if async_op else None
        monitor.calls[name] += 1
        monitor.sent[name] += (out if inp is None else inp).nbytes
        begin = monitor.timers.mark()
        with labelled(f"comm::{name}"):
            work = super()._call(name, out, inp, async_op=async_op, **arguments)
        end = monitor.timers.mark()
        self.add_exposed(begin, end)
        kept = None if monitor.keeping is None else monitor.keeping.keep(out.detach())
        if work is not None:
            return _MonitoredPending(work, self, begin, kept, name)
        if name in ALL_TO_ALLS:
            monitor.timers.add("a2a", begin, end)
        return None


class _MonitoredPending(Pending):
    """A call in flight: what its wait takes is exposed."""

    def __init__(self, work: Pending, comm: InstrumentedComm, begin: Mark, kept: _Kept | None, name: str) -> None:
        super().__init__(None, ())
        self._running: Pending | None = work
        self._comm, self._begin, self._kept, self._name = comm, begin, kept, name

    def wait(self) -> None:
        work, self._running = self._running, None
        if work is None:
            return
        timers = self._comm.monitor.timers
        begin = timers.mark()
        with labelled(f"comm::{self._name}"):
            work.wait()
        end = timers.mark()
        self._comm.add_exposed(begin, end)
        if self._kept is not None:
            self._kept.settle()
        if self._name in ALL_TO_ALLS:
            timers.add("a2a", self._begin, end)
