"""A communicator that counts, times, and can give back what it has once received in place of asking again.

The last is TED's communication-aware checkpointing (arXiv 2303.06318, section 4): activations of a block are thrown
away and computed again in backward, but what came from other ranks is kept, so that no exchange is made twice.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from commbench.communicators.communicator import Communicator
from commbench.communicators.prepared import Pending
from moe_ref.training.spans import Mark, Spans

if TYPE_CHECKING:
    from commbench.communicators.gradients import Gradients

ALL_TO_ALLS = ("all_to_all", "all_to_allv", "tp_all_to_all")


class Stash:
    """What one pass of one block has received, in order."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()

    def keep(self, value: Any) -> _Kept:
        kept = _Kept(value)
        self._kept.append(kept)
        return kept

    def take(self) -> Any:
        return self._kept.popleft().value()


class _Kept:
    def __init__(self, value: Any) -> None:
        self._value = value
        self.landed()

    def landed(self) -> None:
        """It is what it will be: called again when an exchange in flight has ended."""
        self._version = self._value._version if isinstance(self._value, Tensor) else None

    def value(self) -> Any:
        now = self._value._version if isinstance(self._value, Tensor) else None
        assert now == self._version, "a tensor that was received has been changed in place since"
        return self._value


class Watched:
    """Stands for a communicator: the same calls, which are made on it.

    calls: how often each collective was asked for, and how often it was `stashed` and so not made. sent: bytes that
    this rank has handed to each, its own share included. spans: where times go, "a2a" for all-to-alls from call to
    end and "exposed" for all that the current stream, or this thread, waits.
    """

    def __init__(self, comm: Communicator, spans: Spans) -> None:
        self.comm, self.spans = comm, spans
        self.rank, self.size, self.device = comm.rank, comm.size, comm.device
        self.calls: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.stashed: Counter[str] = Counter()
        self._keeping: Stash | None = None
        self._giving: Stash | None = None

    def __getattr__(self, name: str) -> Any:
        """layout, empty, prepare, explain, close: the communicator's own."""
        return getattr(self.comm, name)

    def reset(self) -> None:
        """Forget counts; times are `spans`' own."""
        for counts in (self.calls, self.sent, self.stashed):
            counts.clear()

    @property
    def a2a_bytes(self) -> int:
        return sum(self.sent[name] for name in ALL_TO_ALLS)

    @property
    def a2a_calls(self) -> int:
        return sum(self.calls[name] for name in ALL_TO_ALLS)

    def contexts(
        self, *, stash: bool
    ) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
        """For `LM.forward(contexts=)`: blocks are redone with their exchanges, or without (`stash`)."""

        def make() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            kept = Stash() if stash else None
            return self._with(keeping=kept), self._with(giving=kept)

        return make

    @contextmanager
    def _with(self, *, keeping: Stash | None = None, giving: Stash | None = None) -> Iterator[None]:
        before = self._keeping, self._giving
        self._keeping, self._giving = keeping, giving
        try:
            yield
        finally:
            self._keeping, self._giving = before

    @functools.cached_property
    def autograd(self) -> Gradients:
        from commbench.communicators.gradients import Gradients

        return Gradients(self)  # type: ignore[arg-type]

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return self._call("all_to_all", out, inp, async_op=async_op)

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None:  # fmt: skip
        return self._call("all_to_allv", out, inp, received, sent, matrix=matrix, async_op=async_op)

    def empty(self, shape: Sequence[int], dtype: torch.dtype, *, collective: str) -> Tensor:
        return self.comm.empty(shape, dtype, collective=collective)

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        return self._call("all_gather", out, inp, async_op=async_op)

    def reduce_scatter(self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending | None:
        return self._call("reduce_scatter", out, inp, op, async_op=async_op)

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None:
        return self._call("all_reduce", out, out if inp is None else inp, op, async_op=async_op)

    def broadcast(self, tensor: Tensor, root: int = 0, *, async_op: bool = False) -> Pending | None:
        return self._call("broadcast", tensor, root, async_op=async_op)

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None:
        return self._call("tp_all_to_all", out, inp, tp=tp, tp_input=tp_input, async_op=async_op)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        if self._giving is not None:
            self.stashed["exchange_counts"] += 1
            known: list[list[int]] = self._giving.take()
            return known
        self.calls["exchange_counts"] += 1
        begin = self.spans.mark()
        matrix = self.comm.exchange_counts(sent)
        self.spans.add("exposed", begin)
        if self._keeping is not None:
            self._keeping.keep(matrix)
        return matrix

    def _call(self, name: str, out: Tensor, *given: Any, async_op: bool, **named: Any) -> Pending | None:
        if self._giving is not None:
            self.stashed[name] += 1
            with torch.no_grad():
                out.copy_(self._giving.take().view(out.shape))
            return Pending(None, ()) if async_op else None
        inp = given[0] if given and isinstance(given[0], Tensor) else out
        self.calls[name] += 1
        self.sent[name] += inp.nbytes
        begin = self.spans.mark()
        work: Pending | None = getattr(self.comm, name)(out, *given, async_op=async_op, **named)
        end = self.spans.mark()
        self.spans.add("exposed", begin, end)
        kept = None if self._keeping is None else self._keeping.keep(out.detach())
        if work is not None:
            return _Flying(work, self.spans, begin, kept, of_a2a=name in ALL_TO_ALLS)
        if name in ALL_TO_ALLS:
            self.spans.add("a2a", begin, end)
        return None


class _Flying(Pending):
    """A call in flight: what its wait takes is exposed."""

    def __init__(self, work: Pending, spans: Spans, begin: Mark, kept: _Kept | None, *, of_a2a: bool) -> None:
        super().__init__(None, ())
        self._flying: Pending | None = work
        self._spans, self._begin, self._kept, self._of_a2a = spans, begin, kept, of_a2a

    def wait(self) -> None:
        work, self._flying = self._flying, None
        if work is None:
            return
        begin = self._spans.mark()
        work.wait()
        end = self._spans.mark()
        self._spans.add("exposed", begin, end)
        if self._kept is not None:
            self._kept.landed()
        if self._of_a2a:
            self._spans.add("a2a", self._begin, end)
