"""One algorithm, one file, four things: supports, steps, scratch_bytes, prepare.

They may never disagree. `steps` feeds the bound, the cost prediction and the traffic split beside each result; the
tests compare it, message by message, with what a counting transport saw.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Ready, Work


class Bound(Protocol):
    """An algorithm bound to a communicator and a spec: everything that can be done before the clock starts is done."""

    capturable: bool  # whether a CUDA graph may hold `start`

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        """Collective and untimed: a call for each (output, input), made as ready as it can be: registered, parsed.

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
    """A Bound that owns nothing and can make nothing ready."""

    capturable = False

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [functools.partial(self.start, out, inp) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        raise NotImplementedError

    def close(self) -> None:
        return None


class Algorithm(Protocol):
    name: str
    collective: str
    params: dict[str, tuple[int, str]]  # parameter -> (default, what it means)

    def supports(self, spec: Spec) -> str | None:
        """None, or why this cannot run here, in words."""
        ...

    def steps(self, spec: Spec) -> list[Step] | None:
        """What will move, exactly; None where a library chooses the way and does not tell."""
        ...

    def scratch_bytes(self, spec: Spec) -> int:
        """Bytes per rank that `prepare` allocates through `Comm.empty`."""
        ...

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        """Collective and untimed: sub-groups first, then scratch, then rendezvous.

        Whatever may fail on one rank alone, such as an allocation, must not stand between two collective calls:
        the other ranks would wait for the one that failed. Ranks agree on the outcome afterwards.
        """
        ...
