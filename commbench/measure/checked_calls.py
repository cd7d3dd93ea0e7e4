"""Calls with data of their own: fresh before a call, compared after it, so that no wrong result is timed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from commbench.data import call_word
from commbench.measure import diagnosis, loop, verify
from commbench.measure.buffers import Pair
from commbench.measure.diagnosis import WrongOutput
from commbench.measure.events import Events
from commbench.measure.usage import Meter
from commbench.records import Setup
from commbench.transports.base import Ready


class WrongResult(Exception):
    """Some rank has a wrong output. Raised on all of them; `when` is before, while or after calls are timed."""

    def __init__(self, when: str) -> None:
        super().__init__(when)
        self.when = when


class CheckedCalls(loop.Observer):
    """The data of a case on this rank, whose calls each have a number (`salt`) and data that follow from it.

    each_call: every call of the timing loop has data of its own. Otherwise every pair of buffers has, in all of them.
    """

    def __init__(
        self, checker: verify.Checker, pairs: list[Pair], events: Events, setup: Setup, *, seed: int, each_call: bool
    ) -> None:
        """`seed`, alike on all ranks, draws the calls that are compared where not all can be."""
        self.checker, self.pairs, self.events, self.each_call = checker, pairs, events, each_call
        self.transport = checker.transport
        self.meter: Meter | None = None
        self.beat_s = min(loop.BEAT_S, events.timeout_s / 4)
        self.checked = 0  # outputs compared since the first timed call was loaded
        self.names: list[str] = []  # of the calls, by their number
        self.wrong_outputs: dict[int, WrongOutput] = {}  # by rank of the world, once there are any
        self._setup, self._seed = setup, seed
        self._loading, self._first_call = "warm-up call", -1  # what calls of the loop are called, and since which
        self._half = False
        self._fresh: dict[int, int] = {}  # pairs whose data no call has had yet: the call that they are for
        self._used: list[tuple[int, int]] = []  # pairs, and the call that has left its output in each
        self._compared: list[tuple[int, Any]] = []  # calls, and their comparisons under way
        self._first: WrongOutput | None = None  # that this rank has seen

    def beat(self) -> None:
        """Say that this rank is still alive."""
        self.events.beat()

    def load(self, name: str, pairs: Iterable[int] = (0,)) -> None:
        """Put data of new calls into `pairs`, different ones in each, with outputs that are wrong for those calls."""
        for pair in pairs:
            out, inp = self.pairs[pair]
            salt = len(self.names)
            self.names.append(name)
            # The output first: in place it holds the input.
            self.checker.poison(out, salt)
            self.events.beat()
            self.checker.fill_input(inp, salt)
            self.events.beat()
            self._fresh[pair] = salt

    def used(self, pairs: Iterable[int] = (0,)) -> None:
        """Take note that calls have left their outputs in `pairs`."""
        self._used += [(pair, self._fresh.pop(pair)) for pair in pairs]

    def before(self, call: int) -> None:
        """Load data for the call numbered `call`; with it, those of all calls until its pair of buffers comes again.

        So the data of rotated buffers are as far from the cache as the buffers are.
        """
        with self._spared():
            if self._first_call < 0:
                self._first_call = call
            count = len(self.pairs)
            if call % count not in self._fresh:
                self._compare_used()
                for later in range(call, call + count):
                    if later % count not in self._fresh:
                        self.load(f"{self._loading} {later - self._first_call + 1}", [later % count])
            self.used([call % count])

    def settle(self) -> None:
        """Compare what the last calls have left."""
        with self._spared():
            self._compare_used()

    def spare(self) -> None:
        """Compare a random half of the outputs from now on, the same calls on all ranks."""
        self._half = True

    def arm(self) -> None:
        """Make every output wrong for the calls that will be timed: only they can bring what is right."""
        self._fresh.clear()
        self._loading, self._first_call, self.checked = "timed call", -1, 0
        if not self.each_call:
            for pair in range(len(self.pairs)):
                of = f" on pair {pair + 1} of buffers" if len(self.pairs) > 1 else ""
                self.load(f"the timed calls{of}", [pair])
        self.meter = Meter(self._setup, self.transport)

    def found(self) -> int:
        """Return the elements that this rank has found wrong so far. Waits for the comparisons."""
        for (salt, _), difference in zip(
            self._compared, self.checker.read([compared for _, compared in self._compared]), strict=True
        ):
            if difference.elements and self._first is None:
                self._first = diagnosis.examine(self.checker, difference, salt)
        self._compared.clear()
        return 0 if self._first is None else self._first.elements

    def wrong(self) -> None:
        """Tell what some rank has found. Collective."""
        self._judge("before timing" if self.meter is None else "while timing")

    def check(self, when: str) -> None:
        """Compare what the last calls have left, and raise `WrongResult` if that is wrong on any rank. Collective."""
        self._compare_used()
        self._judge(when)

    def call(self, ready: Ready, name: str, when: str) -> None:
        """Make one untimed call with data of its own, and check its output. Collective."""
        self.load(name)
        self.transport.barrier()
        if (work := ready()) is not None:
            work.wait()
        self.transport.synchronize()
        self.used()
        self.check(when)

    def _judge(self, when: str) -> None:
        self.found()
        mine = self._first or WrongOutput(0, 0)
        seen = self.transport.all_gather(mine.numbers())
        self.wrong_outputs = {rank: WrongOutput.from_numbers(row.tolist()) for rank, row in enumerate(seen) if row[0]}
        if self.wrong_outputs:
            raise WrongResult(when)

    def _compare_used(self) -> None:
        for pair, salt in self._used:
            if not self._half or call_word(self._seed ^ salt) & 1:
                self._compared.append((salt, self.checker.compare(self.pairs[pair][0], salt)))
                self.checked += 1
                self.events.beat()
        self._used.clear()

    @contextlib.contextmanager
    def _spared(self) -> Iterator[None]:
        """What is done here is no part of the measurement."""
        if self.meter is None:
            yield
            return
        with self.meter.aside():
            yield
