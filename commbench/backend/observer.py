"""What an observer of a program's collectives is told, and the one that this process has.

The wrapper of a process group (`commbench.backend.group`) tells it, on the thread that makes the call:

1. `group_created(group)` once for each group that this process is a rank of, before its first call.
2. `begin(call)` right before a call is handed on. What it returns is the call's token, whatever the observer likes.
3. `end(token, work)` when the call has returned, the collective done or not; it returns the work that the program
   gets: the same, or one of its own around it (`ObservedWork` is a base) that sees when the program waits. There is
   none of a synchronous call over NCCL, which the program's own stream makes.
   A call that raises has a `failed(token, error)` in place of it.

torch waits itself for a synchronous call, right after `end`, on the work that `end` returned; so an observer may wait
for it in `end` as well. `call.asynchronous` tells them apart; calls that are like each other may be told by the same
object. C++ (DDP, functional collectives) makes calls too. An observer that raises is dropped with one line on stderr;
the program goes on. `COMMBENCH_BACKEND=record` takes `commbench.backend.recorder.recorder()`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist


class GroupInfo(NamedTuple):
    """A process group of which this process is a rank."""

    name: str  # torch's
    ranks: tuple[int, ...]  # in the world, by rank in the group
    rank: int  # of this process in the group
    backend: str  # as torch spells it: cpu:gloo,cuda:nccl
    description: str = ""


class ObservedCall(NamedTuple):
    """One call, as one rank makes it. Nothing in it keeps a tensor alive."""

    group: GroupInfo
    collective: str  # ours (all_to_all, all_to_allv, all_gather, ...), or torch's name where we have none
    function: str  # torch's: the method of ProcessGroup
    dtype: str  # of torch, without "torch.": bfloat16; "" where no tensor is given
    nbytes: int  # nccl-tests' size column, of this rank: max(bytes sent, bytes received), own block included
    sent: tuple[int, ...] | None  # bytes to each rank of the group; None: equal blocks, or no exchange
    received: tuple[int, ...] | None  # bytes from each
    asynchronous: bool
    device: str  # cpu, cuda
    root: int | None = None  # of broadcast, reduce, gather, scatter; the peer of send and recv; in the group


class CallObserver(Protocol):
    """Hears of all collectives of this process. See the module's docstring for the order."""

    def group_created(self, group: GroupInfo) -> None: ...

    def begin(self, call: ObservedCall) -> Any: ...

    def end(self, token: Any, work: dist.Work | None) -> dist.Work | None: ...

    def failed(self, token: Any, error: BaseException) -> None: ...


class ObservedWork(dist.Work):
    """A work around another one. What a program asks of it is asked of `inner`; override what has to be seen."""

    def __init__(self, inner: dist.Work) -> None:
        super().__init__()
        self.inner = inner


def _forward(name: str) -> Callable[..., Any]:
    def method(self: ObservedWork, *given: Any, **named: Any) -> Any:
        return getattr(self.inner, name)(*given, **named)

    return method


# torch's class has these itself, but on a work that it knows nothing of.
for _name in dir(dist.Work):
    if not _name.startswith("__") and _name not in ("_pybind11_conduit_v1_", "boxed", "unbox"):
        setattr(ObservedWork, _name, _forward(_name))

# The observer of this process; none, unless something is recorded.
current: CallObserver | None = None


def drop(error: BaseException) -> None:
    """Go on without the observer, which has raised `error`."""
    global current
    current = None
    sys.stderr.write(f"commbench: recording ends here, the program goes on: {type(error).__name__}: {error}\n")
