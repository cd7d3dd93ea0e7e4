"""One algorithm, one file, four things: unsupported, steps, scratch_bytes, prepare.

They may never disagree. `steps` feeds the bound, the cost prediction and the traffic split beside each result; the
tests compare it, message by message, with what a counting transport saw.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from commbench.spec import Send, Spec, Step, Value
from commbench.transports.base import Array, Comm, Ready, Work, Works


class Bound(Protocol):
    """An algorithm bound to a communicator and a spec: everything that can be done before the clock starts is done."""

    capturable: bool  # whether a CUDA graph may hold `start`

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        """Untimed, without a word to other ranks: a call for each (output, input), made as ready as it can be.

        A ready call does what `start` does, and gives None instead of a Work where it is done when it returns.
        """
        ...

    def start(self, out: Array, inp: Array) -> Work:
        """Start one call on the current stream; allocates nothing.

        `out` and `inp` overlap only where `spec.in_place` says so, as `Collective.in_place` lays them out.
        """
        ...

    def close(self) -> None:
        """Free what `prepare` made."""
        ...


class BoundBase:
    """A Bound that owns nothing and can make nothing ready. It never looks at data, so a graph may hold its calls."""

    capturable = True

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [functools.partial(self.start, out, inp) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        raise NotImplementedError

    def close(self) -> None:
        return None


WAIT = "wait"  # in an order: for the oldest exchange in flight


class ProgramBound(BoundBase):
    """A Bound whose calls are programs, made for each pair of buffers before the clock starts.

    `order` names the actions of a call one after the other, `WAIT` among them; `steps_in_order` reads the same list.
    `actions` gives what each name does: an exchange that it starts, or work of this rank alone.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._order = order

    def actions(self, out: Array, inp: Array) -> Mapping[str, Callable[[], Work | None]]:
        raise NotImplementedError

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [functools.partial(_run, self._program(out, inp)) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        return _run(self._program(out, inp))

    def _program(self, out: Array, inp: Array) -> list[Callable[[], Work | None] | None]:
        """The actions in order; None waits."""
        actions = self.actions(out, inp)
        return [None if name == WAIT else actions[name] for name in self._order]


def _run(program: Sequence[Callable[[], Work | None] | None]) -> Work:
    flying: deque[Work] = deque()
    for action in program:
        if action is None:
            flying.popleft().wait()
        elif (work := action()) is not None:
            flying.append(work)
    return Works(flying)


def steps_in_order(order: Sequence[str], sends: Mapping[str, tuple[Send, ...]]) -> list[Step]:
    """The steps of a program: those actions in `order` that are named in `sends`, `NAME` or `NAME-CHUNK`.

    A step comes after all that was waited for before it was started, so what is declared to be in flight together is.
    """
    known: dict[str, frozenset[str]] = {}  # step -> all that is finished before it begins
    steps: list[Step] = []
    flying: deque[str] = deque()
    finished: list[str] = []
    for name in order:
        if name == WAIT:
            finished.append(flying.popleft())
        elif name in sends:
            implied = frozenset[str]().union(*(known[done] for done in finished))
            known[name] = implied.union(finished)
            after = tuple(done for done in finished if done not in implied)
            number = name.rpartition("-")[2]
            chunk = int(number) if number.isdigit() else 0
            steps.append(Step(name=name, sends=sends[name], after=after, chunk=chunk))
            flying.append(name)
    return steps


class CountsInside(Protocol):
    """An uneven exchange that needs to know its own rank's counts only, and tells ranks the rest in its messages.

    For transports where a receive may be longer than what comes, as on gloo.
    """

    def __init__(self, comm: Comm, spec: Spec) -> None:
        """Collective. `spec` says layout and parameters, and nothing of counts."""
        ...

    def run(self, out: Array, inp: Array, received: Sequence[int], sent: Sequence[int]) -> int:
        """Send `sent[i]` bytes to rank i, receive `received[i]` from it; return the call's size, equal on all ranks."""
        ...


class Algorithm(Protocol):
    name: str
    collective: str
    params: dict[str, tuple[int, str]]  # parameter -> (default, what it means)
    tries: dict[str, tuple[int, ...]]  # parameter -> values that tuning tries, if there is a choice
    demands: dict[str, Value]  # argument of the collective -> the one value that it can do
    concurrent: bool  # whether exchanges are in flight beside each other, so that no call may block
    reduces: bool  # whether the transport's own reductions are used, where the collective itself does not say so
    one_sided: bool  # whether ranks write into each other's memory
    counts_inside: type[CountsInside] | None  # an uneven exchange of which a rank knows its own counts only

    def unsupported(self, spec: Spec) -> str:
        """Return in words why this cannot run here; "" if it can."""
        ...

    def steps(self, spec: Spec) -> list[Step] | None:
        """What will move, exactly; None where a library chooses the way and does not tell."""
        ...

    def scratch_bytes(self, spec: Spec) -> int:
        """Bytes per rank that `prepare` allocates through `Comm.empty`."""
        ...

    def multiprocessors(self, spec: Spec) -> int | None:
        """Return how many of a GPU's multiprocessors a call takes; None where a library decides, or none is used."""
        ...

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        """Collective and untimed: sub-groups first, then scratch, then rendezvous.

        Whatever may fail on one rank alone, such as an allocation, must not stand between two collective calls:
        the other ranks would wait for the one that failed. Ranks agree on the outcome afterwards.
        """
        ...


class AlgorithmBase:
    """What most share: no parameters, no demands, one exchange at a time, possible everywhere, no scratch."""

    params: dict[str, tuple[int, str]] = {}
    tries: dict[str, tuple[int, ...]] = {}
    demands: dict[str, Value] = {}
    concurrent = False
    reduces = False
    one_sided = False
    counts_inside: type[CountsInside] | None = None

    def unsupported(self, spec: Spec) -> str:
        return ""

    def scratch_bytes(self, spec: Spec) -> int:
        return 0

    def multiprocessors(self, spec: Spec) -> int | None:
        return None
