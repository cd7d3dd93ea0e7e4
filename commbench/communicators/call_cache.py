"""How a communicator makes calls: straight, on tensors that it has seen; else by choice and preparation."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Sequence

import torch

from commbench import transports
from commbench.communicators.prepared import Pending, Prepared, PreparedCalls
from commbench.communicators.requests import CallRequest, as_bytes
from commbench.communicators.select import PLAIN, Ask, Chooser, Chosen
from commbench.errors import UsageError
from commbench.transports.base import Ready
from commbench.transports.existing_group import Joined

_MOST_SEEN = 4096  # calls on tensors that are alive
_MOST_EXPLAINED = 256  # kinds of calls that `explain` remembers
_DONE = Pending(None, ())
Key = tuple[object, ...]


class ReadyCall:
    """A ready call on two tensors. It dies with either of them, and does not keep them alive."""

    __slots__ = (
        "_calls",
        "_counter",
        "_dtype",
        "_gpu",
        "_inp_at",
        "_inp_n",
        "_key",
        "_out_at",
        "_out_n",
        "_ready",
        "_references",
        "prepared",
    )

    def __init__(
        self,
        calls: CallCache,
        key: Key,
        request: CallRequest,
        prepared: Prepared,
        ready: Ready,
        references: Sequence[object],
    ) -> None:
        self.prepared, self._ready, self._references = prepared, ready, references
        self._calls, self._counter, self._gpu, self._key = calls, calls.counter, calls.gpu, key
        out, inp = request.out, request.inp
        self._out_at, self._inp_at, self._out_n, self._inp_n = out.data_ptr(), inp.data_ptr(), out.numel(), inp.numel()
        self._dtype = out.dtype

    def again(self, out: torch.Tensor, inp: torch.Tensor) -> bool:
        """Make the call, if the tensors still are what they were.

        `resize_`, `set_`, `t_` and `.data =` change them, and so does `copy_` from a tensor that requires a gradient.
        Most calls come here, so each line of it counts.
        """
        if (
            out.data_ptr() != self._out_at
            or inp.data_ptr() != self._inp_at
            or out.numel() != self._out_n
            or inp.numel() != self._inp_n
            or out.dtype is not self._dtype
            or inp.dtype is not self._dtype
            or not out.is_contiguous()
            or not inp.is_contiguous()
            or out.requires_grad
            or inp.requires_grad
        ):
            self._calls.seen.pop(self._key, None)  # it holds the memory that they had
            self.prepared.keys.discard(self._key)
            return False
        prepared = self.prepared
        if self._gpu:
            if self._calls.transport.capturing():
                return False  # graphs may have another choice, and keep what they hold
            self._calls.enter(prepared)
        prepared.used = next(self._counter)
        if prepared.in_flight is not None:
            prepared.wait_in_flight()
        work = self._ready()
        if work is not None:
            work.wait()
        return True


class CallCache:
    """The calls of one communicator: what was prepared, and what is ready on tensors that have been seen."""

    def __init__(self, transport: Joined, chooser: Chooser) -> None:
        self.transport, self.chooser = transport, chooser
        self.seen: dict[Key, ReadyCall] = {}
        self.owned: dict[int, tuple[torch.Tensor, str]] = {}  # address -> memory that `empty` made, and of what kind
        self.explained: dict[Ask, Chosen] = {}
        self.gpu = transports.entry(transport.name).gpus
        self._cache = PreparedCalls(transport, self._forget)
        self._once: dict[tuple[int, ...], Key] = {}  # calls that have been made once, by tensors and addresses
        self.counter = itertools.count(1)  # of calls, the same on all ranks
        self._captured = False
        self._compiled = False  # called in what torch.compile has made
        self._open = True

    def run(self, request: CallRequest, *, async_op: bool) -> Pending | None:
        """Make any call. It is the same on all ranks, so that they choose and prepare alike."""
        if torch.compiler.is_compiling():
            pending: Pending | None = _run_in_compiled(self, request, async_op)
            return pending
        self.check_open()
        if _is_empty(request):
            return _DONE if async_op else None
        capturing = self.gpu and self.transport.capturing()
        prepared = self._prepared(request, capturing=capturing, async_op=async_op)
        if capturing:
            self._hold(prepared)
        prepared.used = next(self.counter)
        if prepared.in_flight is not None:
            prepared.wait_in_flight()
        if self.gpu:
            self.enter(prepared)
        work = self._ready(request, prepared, lasting=not (capturing or async_op))()
        if not async_op:
            if work is not None:
                work.wait()
            return None
        if not prepared.exclusive:
            return Pending(work, (request.out, request.inp))
        on_done = functools.partial(self._record_done, prepared) if self.gpu else None
        prepared.in_flight = Pending(work, (request.out, request.inp), on_done)
        return prepared.in_flight

    def compiled(self) -> None:
        """Keep no call that is ready from now on: the compiler would look into it, and it cannot."""
        if not self._compiled:
            self._compiled = True
            self.seen.clear()

    def prepare(self, request: CallRequest, *, async_op: bool) -> None:
        """Do all but the call, for calls in a graph too, where there are graphs. Collective."""
        self.check_open()
        if _is_empty(request):
            return
        for capturing in (False, True) if self.gpu else (False,):
            prepared = self._prepared(request, capturing=capturing, async_op=async_op, ahead=True)
            prepared.used = next(self.counter)  # else it would be the first to be forgotten
            if self.gpu:
                self.enter(prepared)
            # Kernels are loaded now. On memory that is not `empty`'s a call is bound again when it is made.
            self._bind(request, prepared)

    def check_open(self) -> None:
        if not self._open:
            raise UsageError("this communicator is closed", hint="make another one")

    def close(self) -> None:
        """Free what was prepared. Collective."""
        if self._open:
            self._open = False
            self.seen.clear()
            self._cache.close()
            self.transport.leave(captured=self._captured)
            self.owned.clear()

    def _prepared(self, request: CallRequest, *, capturing: bool, async_op: bool, ahead: bool = False) -> Prepared:
        """Return what a call needs; collective where that is not known yet. `ahead`: however long that takes."""
        kind = (
            request.collective,
            request.dtype,
            request.size_bytes,
            request.arguments,
            request.in_place,
            self._memory(request.out),
            self._memory(request.inp),
            capturing and self.chooser.captures(request.collective),
            async_op and self.gpu,  # on a CPU all calls are alike
            None,
        )
        known = self._cache.get(kind)  # as the `Ask` that it is in all but name: that would cost a microsecond
        return known or self._new(Ask(*kind), request, ahead=ahead)

    def _new(self, ask: Ask, request: CallRequest, *, ahead: bool) -> Prepared:
        known = self.explained.get(ask)
        chosen = known or self.chooser.choose(ask._replace(matrix=request.matrix))
        if request.matrix is not None and chosen.algorithm.one_sided and not ahead:
            if (prepared := self._cache.uneven(ask._replace(matrix=request.matrix))) is not None:
                return prepared
            why = "not prepared ahead for these counts, for which all ranks would have to meet"
            ask = ask._replace(out=PLAIN, inp=PLAIN)
            known, chosen = None, self.chooser.choose(ask._replace(matrix=request.matrix), but=why)
        if known is None:
            self._explain(ask, chosen)
        if chosen.config.algorithm == "direct":
            return self._cache.library(ask, chosen)
        if request.matrix is None:
            return self._cache.add(ask, chosen)
        ask = ask._replace(matrix=request.matrix)
        # A choice that is known was made for other counts, which its spec has.
        return self._cache.uneven(ask) or self._cache.add(ask, self.chooser.choose(ask) if known else chosen)

    def _bind(self, request: CallRequest, prepared: Prepared) -> Ready:
        pair = as_bytes(request.out), as_bytes(request.inp)
        if prepared.counted:
            assert request.counts is not None
            return self.transport.world.ready("all_to_allv", *pair, *request.counts, step="all")
        if request.matrix is None and self._is_owned(request):
            return prepared.ready(pair, (request.out.data_ptr(), request.inp.data_ptr()))
        (ready,) = prepared.bound.bind([pair])
        return ready

    def _ready(self, request: CallRequest, prepared: Prepared, *, lasting: bool) -> Ready:
        """Return the call on these tensors, kept the second time.

        Tensors of one step of training are not those of the next, so what comes once is not worth keeping.
        """
        out, inp = request.out, request.inp
        if self.owned and self._is_owned(request):
            ready = self._bind(request, prepared)
        else:
            at = id(out), id(inp), out.data_ptr(), inp.data_ptr()
            if not lasting or self._compiled or self._once.get(at) != request.key:
                if len(self._once) >= _MOST_SEEN:
                    self._once.clear()
                self._once[at] = request.key
                if prepared.counted:
                    return self._bind(request, prepared)
                return functools.partial(prepared.bound.start, as_bytes(out), as_bytes(inp))
            ready = self._bind(request, prepared)
        if lasting and request.matrix is None and not self._compiled and not (out.requires_grad or inp.requires_grad):
            self._remember(request, prepared, ready)
        return ready

    def _remember(self, request: CallRequest, prepared: Prepared, ready: Ready) -> None:
        seen, key = self.seen, (request.collective, id(request.out), id(request.inp), *request.key)
        if len(seen) >= _MOST_SEEN:
            for held in tuple(seen.values()):
                held.prepared.keys.clear()
            seen.clear()  # not one by one: a tensor may die in between, and take its call out

        def died(_: object) -> None:
            seen.pop(key, None)
            prepared.keys.discard(key)

        prepared.keys.add(key)
        references = [weakref.ref(tensor, died) for tensor in (request.out, request.inp)]
        seen[key] = ReadyCall(self, key, request, prepared, ready, references)

    def enter(self, prepared: Prepared) -> None:
        """Set, on a GPU, whether the library runs beside the stream, and after which stream's use of the scratch."""
        self.transport.overlap(prepared.overlaps)
        if prepared.exclusive:
            prepared.stream = self.transport.follow(prepared.stream)
            if prepared.done_event is not None:
                self.transport.after(prepared.done_event)
                prepared.done_event = None

    def _record_done(self, prepared: Prepared) -> None:
        """Record, after a wait on another stream than the call's, that the scratch is free then."""
        if self.transport.follow(None) != prepared.stream:
            prepared.done_event = self.transport.mark()

    def _hold(self, prepared: Prepared) -> None:
        if not prepared.counted and not prepared.bound.capturable:
            raise UsageError(
                f"{prepared.chosen.config.label} looks at data on the host, which a graph cannot capture",
                hint="call it outside of the capture",
            )
        prepared.captured = self._captured = True

    def _memory(self, tensor: torch.Tensor) -> str:
        if not self.owned:
            return PLAIN
        return self.owned.get(tensor.untyped_storage().data_ptr(), (None, PLAIN))[1]

    def _is_owned(self, request: CallRequest) -> bool:
        return PLAIN not in (self._memory(request.out), self._memory(request.inp))

    def _explain(self, ask: Ask, chosen: Chosen) -> None:
        if len(self.explained) >= _MOST_EXPLAINED:
            del self.explained[next(iter(self.explained))]  # the oldest
        self.explained[ask] = chosen

    def _forget(self, prepared: Prepared) -> None:
        for key in tuple(prepared.keys):
            self.seen.pop(key, None)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _run_in_compiled(calls: CallCache, request: CallRequest, async_op: bool) -> Pending | None:
    """Make a call outside of the compiler, for which a transport's objects are closed."""
    calls.compiled()
    return calls.run(request, async_op=async_op)


def _is_empty(request: CallRequest) -> bool:
    """Return whether all ranks know that none has anything to send: an exchange in place is of one rank."""
    if request.in_place and request.collective in ("all_to_all", "all_to_allv"):
        return True
    return not request.size_bytes and (request.counts is None or request.matrix is not None)
