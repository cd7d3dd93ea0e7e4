"""Calls that have been prepared: each kind with its algorithm, kept as long as there is room."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from commbench.algorithms.base import Bound
from commbench.communicators.select import Ask, Chosen, describe_call, name_call
from commbench.errors import UsageError
from commbench.transports.base import Array, Ready, Work
from commbench.transports.existing_group import Joined

KEPT = 64  # of equal sizes
KEPT_UNEVEN = 16  # of uneven exchanges, whose counts change


class Pending:
    """A call that was started with `async_op=True`."""

    def __init__(self, work: Work | None, buffers: Sequence[object], on_done: Callable[[], None] | None = None) -> None:
        """Keep `buffers` until the wait. `on_done` is called once, after it."""
        self._work, self._on_done = work, on_done
        self._buffers: Sequence[object] = buffers  # in use until then

    def wait(self) -> None:
        """Return when the buffers may be used again; on a GPU: when the current stream may. More than once is fine."""
        (work, on_done), (self._work, self._on_done) = (self._work, self._on_done), (None, None)
        if work is not None:
            work.wait()
        if on_done is not None:
            on_done()
        self._buffers = ()


class Prepared:
    """One kind of call, bound to the algorithm that was chosen for it."""

    def __init__(self, ask: Ask, chosen: Chosen, bound: Bound | None, *, overlaps: bool) -> None:
        """Keep a bound call; `bound` is None for the library's uneven exchange, whose counts may change every time."""
        self.ask, self.chosen = ask, chosen
        self.counted = bound is None
        if bound is not None:
            self.bound = bound
        self.overlaps = overlaps  # whether the library's calls run beside the current stream
        # Calls share scratch, so that one ends before the next begins.
        self.exclusive = chosen.algorithm.scratch_bytes(chosen.spec) > 0
        self.used = 0  # number of the last call, the same on all ranks
        self.captured = False  # a graph holds calls of it
        self.in_flight: Pending | None = None
        self.keys: set[tuple[object, ...]] = set()  # of the calls on tensors that have been seen
        self.stream: int | None = None  # of the last call, on a GPU
        self.done_event: Any = None  # on another stream: the last call is over
        self._kept: dict[tuple[int, int], Ready] = {}  # calls on the communicator's own buffers, by address

    def ready(self, pair: tuple[Array, Array], at: tuple[int, int]) -> Ready:
        """Return the call on buffers of the communicator's, which live as long as it does; made once."""
        if at not in self._kept:
            (self._kept[at],) = self.bound.bind([pair])
        return self._kept[at]

    def wait_in_flight(self) -> None:
        """Wait for the call that is in flight."""
        in_flight, self.in_flight = self.in_flight, None
        if in_flight is not None:
            in_flight.wait()

    def close(self) -> None:
        self.wait_in_flight()
        self._kept.clear()
        if not self.counted:
            self.bound.close()
            del self.bound  # it holds the group, and a program may hold a `Pending` for long


class PreparedCalls:
    """What has been prepared. All ranks make the same calls, so all of them keep and forget the same."""

    def __init__(self, transport: Joined, forget: Callable[[Prepared], None]) -> None:
        """Keep nothing yet. `forget` is called with what is closed."""
        self._transport, self._forget = transport, forget
        self._even: dict[tuple[object, ...], Prepared] = {}  # by `Ask`
        self._uneven: dict[tuple[object, ...], Prepared] = {}  # with the matrix in it
        # The library's own calls need no preparation, and so need not be the same on all ranks.
        self._library: dict[tuple[object, ...], Prepared] = {}

    def get(self, ask: tuple[object, ...]) -> Prepared | None:
        return self._even.get(ask) or self._library.get(ask)

    def uneven(self, ask: Ask) -> Prepared | None:
        return self._uneven.get(ask)

    def library(self, ask: Ask, chosen: Chosen) -> Prepared:
        """Return the library's own call: not collective. An uneven exchange is not bound, as counts may change."""
        if (known := self._library.get(ask)) is not None:
            return known
        if len(self._library) >= KEPT:
            self._forget(self._library.pop(next(iter(self._library))))
        self._transport.overlap(ask.asynchronous)
        counted = ask.collective == "all_to_allv"
        bound = None if counted else chosen.algorithm.prepare(self._transport.world, chosen.spec)
        made = self._library[ask] = Prepared(ask, chosen, bound, overlaps=ask.asynchronous)
        return made

    def add(self, ask: Ask, chosen: Chosen) -> Prepared:
        """Prepare `ask`, and forget what was used longest ago if it gets too much. Collective.

        No votes are taken over counts, which may be others in every call.
        """
        transport, algorithm, votes = self._transport, chosen.algorithm, ask.matrix is None
        if transport.capturing():
            raise UsageError(
                f"{describe_call(ask)}: not prepared before the capture",
                hint=f"call comm.prepare({ask.collective!r}, ...) with the same tensors before the graph is captured",
            )
        if votes:
            _same_everywhere(transport, ask, chosen)
        overlaps = ask.asynchronous or algorithm.concurrent
        transport.overlap(overlaps)
        failure, bound = "", None
        try:
            bound = algorithm.prepare(transport.world, chosen.spec)
        except Exception as error:
            if not votes or not transport.is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        failed = votes and bool(transport.all_gather([float(bool(failure))]).any())
        if failed or bound is None:
            if bound is not None:
                bound.close()
            raise MemoryError(
                f"{name_call(ask)}, {chosen.config.label}: {failure or 'another rank lacks memory, see its log'}"
            )
        prepared = Prepared(ask, chosen, bound, overlaps=overlaps)
        kept, most = (self._even, KEPT) if ask.matrix is None else (self._uneven, KEPT_UNEVEN)
        self._make_room(kept, most)
        kept[ask] = prepared
        return prepared

    def _make_room(self, kept: dict[tuple[object, ...], Prepared], most: int) -> None:
        """Close what was used longest ago. A graph would go on using what is freed, so what one holds stays."""
        free = [ask for ask, prepared in kept.items() if not prepared.captured]
        if len(kept) >= most and free:
            oldest = kept.pop(min(free, key=lambda ask: kept[ask].used))
            self._forget(oldest)
            oldest.close()

    def close(self) -> None:
        for kept in (self._even, self._uneven, self._library):
            for prepared in kept.values():
                prepared.close()
            kept.clear()


def _same_everywhere(transport: Joined, ask: Ask, chosen: Chosen) -> None:
    """Raise where ranks are about to prepare different things, which would hang. Collective."""
    text = f"{ask} {chosen.config.label}"
    number = float(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
    if len({*transport.all_gather([number])[:, 0].tolist()}) > 1:
        raise UsageError(
            f"the ranks call different things: this one {describe_call(ask)}: {chosen.config.label}",
            hint="all ranks make the same calls in the same order, on the same kinds of buffers",
        )
