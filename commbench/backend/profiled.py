"""The calls of one wrapped group that go by a profile; all others are torch's own.

What is decided here depends on nothing but what is the same on all ranks: the kind and size of a call, the profile, and
what the ranks have told each other. Else one would take torch's call, and another the profile's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from commbench.backend.private_group import PrivateGroups
from commbench.backend.said import describe, say_once
from commbench.backend.source import ProfileSource
from commbench.backend.uneven import Uneven
from commbench.backend.works import PendingWork, ProfiledWork, Worker
from commbench.communicators import create
from commbench.communicators.communicator import Communicator
from commbench.communicators.select import Ask, Chosen, describe_call
from commbench.errors import CommbenchError, UsageError
from commbench.transports.gloo import KINDS, OPS
from commbench.transports.plain_groups import plain_groups

Tensor = torch.Tensor
LIBRARY = object()  # the answer for a call that torch shall make itself
_KINDS = {kind: name for name, kind in KINDS.items()}


class ProfiledCalls:
    """Makes calls by the profile, on communicators that are made at the first call on a device."""

    def __init__(
        self, library: Callable[[], dist.ProcessGroup], ranks: Sequence[int], name: str, source: ProfileSource
    ) -> None:
        """Make nothing yet. `library` gives torch's own group, known to torch's functions; `ranks` are the world's."""
        self._inner = library()
        self._ranks, self._name, self._source = ranks, name, source
        self._comms: dict[bool, Communicator | None] = {}  # on the CPU or not; None: torch makes all calls there
        self._library: set[tuple[object, ...]] = set()  # kinds of calls that are torch's
        self._private: PrivateGroups | None = None
        self._worker, self._lock = Worker(), threading.Lock()
        self._uneven: Uneven | None = None
        self._any = False  # whether any call has gone by the profile
        self.reasons: list[str] = []  # why calls are torch's that the profile has another choice for
        self.functions: dict[str, Callable[..., Any]] = {
            "alltoall_base": self._all_to_all,
            "all_to_all_single": self._all_to_all,
            "_allgather_base": self._all_gather,
            "all_gather_single": self._all_gather,
            "allgather_into_tensor_coalesced": self._all_gather_one,
            "all_gather_single_coalesced": self._all_gather_one,
            "broadcast": self._broadcast,
        }
        if source.reductions:
            self.functions |= {
                "allreduce": self._all_reduce,
                "_reduce_scatter_base": self._reduce_scatter,
                "reduce_scatter_single": self._reduce_scatter,
                "reduce_scatter_tensor_coalesced": self._reduce_scatter_one,
                "reduce_scatter_single_coalesced": self._reduce_scatter_one,
            }

    @property
    def used(self) -> bool:
        """Return whether a call has come that the profile might have a choice for."""
        return bool(self._comms)

    def explain(self) -> str:
        """Return in words what goes by the profile here, and why what does not."""
        lines = [f"group {self._name} of {len(self._ranks)} ranks, profile {self._source.name}"]
        lines += [comm.explain() for comm in self._comms.values() if comm is not None]
        lines += [] if self._uneven is None else [f"uneven exchanges: {self._uneven.explain()}"]
        lines += [] if self._any or self._uneven is not None else ["no call of this group has gone by the profile"]
        return "\n".join([*lines, *(f"torch's own: {reason}" for reason in self.reasons)])

    def close(self) -> None:
        """Let go of all that was made. Not collective: other ranks may not come."""
        self._worker.close()
        self._comms.clear()
        self._uneven = None
        if self._private is not None:
            self._private.close()
            self._private = None

    def _all_to_all(self, out: Tensor, inp: Tensor, received: Any, sent: Any, options: Any = None) -> Any:
        if len(received) or len(sent):
            return self._all_to_allv(out, inp, received, sent, options)
        return self._call("all_to_all", out, inp, inp.nbytes, options)

    def _all_gather(self, out: Tensor, inp: Tensor, options: Any = None) -> Any:
        return self._call("all_gather", out, inp, out.nbytes, options)

    def _all_gather_one(self, outs: Sequence[Tensor], inps: Sequence[Tensor], options: Any = None) -> Any:
        return self._all_gather(outs[0], inps[0], options) if len(outs) == 1 else LIBRARY

    def _broadcast(self, tensors: Any, options: Any = None, *rest: Any) -> Any:
        if isinstance(tensors, Tensor) or len(tensors) != 1 or not hasattr(options, "rootRank"):
            return LIBRARY
        return self._call("broadcast", tensors[0], tensors[0], tensors[0].nbytes, options, root=options.rootRank)

    def _all_reduce(self, tensors: Any, options: Any = None, *rest: Any) -> Any:
        op = _op(options)
        if isinstance(tensors, Tensor) or len(tensors) != 1 or op is None or tensors[0].layout is not torch.strided:
            return LIBRARY
        return self._call("all_reduce", tensors[0], tensors[0], tensors[0].nbytes, options, op=op)

    def _reduce_scatter(self, out: Tensor, inp: Tensor, options: Any = None) -> Any:
        op = _op(options)
        return LIBRARY if op is None else self._call("reduce_scatter", out, inp, inp.nbytes, options, op=op)

    def _reduce_scatter_one(self, outs: Sequence[Tensor], inps: Sequence[Tensor], options: Any = None) -> Any:
        return self._reduce_scatter(outs[0], inps[0], options) if len(outs) == 1 else LIBRARY

    def _call(self, name: str, out: Tensor, inp: Tensor, nbytes: int, options: Any, **arguments: Any) -> Any:
        """Make a call whose size all ranks know, or return `LIBRARY`."""
        kind = (name, nbytes, out.is_cpu, *arguments.values(), out.dtype if "op" in arguments else None)
        if kind in self._library or not nbytes:
            return LIBRARY
        with self._lock:
            comm = self._communicator(out)
            if comm is None or self._is_library(comm, name, nbytes, out, arguments):
                if comm is not None or out.is_cpu or not torch.cuda.is_current_stream_capturing():
                    self._library.add(kind)
                return LIBRARY
            self._any = True
            flat = _flat(out), _flat(inp)
            tensors = flat if name != "broadcast" else flat[:1]
            asynchronous = getattr(options, "asyncOp", True)
            try:
                if out.is_cpu and asynchronous:
                    return self._worker.submit(lambda: getattr(comm, name)(*tensors, **arguments), [out])
                self._worker.drain()
                with torch.no_grad(), plain_groups():
                    pending = getattr(comm, name)(*tensors, async_op=asynchronous, **arguments)
            except (UsageError, MemoryError) as error:  # raised on all ranks, and before anything is sent
                self._say(f"{name} of {nbytes} B: {describe(error)}")
                if not isinstance(error, UsageError):
                    self._library.add(kind)
                return LIBRARY
        if pending is not None and asynchronous:
            return PendingWork(pending, [out])
        return _finished(out)

    def _all_to_allv(self, out: Tensor, inp: Tensor, received: Any, sent: Any, options: Any) -> Any:
        """Make an exchange of which a rank knows its own counts only."""
        if ("all_to_allv", out.is_cpu) in self._library:
            return LIBRARY
        with self._lock:
            if self._uneven is None:
                comm = self._communicator(out)
                if comm is not None and out.is_cpu:
                    self._worker.drain()
                    self._uneven = Uneven(comm, self._source.loaded().profile)
                why = "" if self._uneven is None else self._uneven.not_worth
                if comm is not None and not out.is_cpu:
                    why = "no rank on a GPU can wait for the counts of the others"
                if comm is None or why:
                    self._library.add(("all_to_allv", out.is_cpu))
                    if comm is not None and why:
                        self._say(f"all_to_allv: {why}")
                    return LIBRARY
            assert self._uneven is not None
            uneven, flat = self._uneven, (_flat(out), _flat(inp))
            counts = _counts(out, received, len(self._ranks)), _counts(inp, sent, len(self._ranks))
            if getattr(options, "asyncOp", True):
                return self._worker.submit(lambda: uneven.run(*flat, *counts), [out])
            self._worker.drain()
            with torch.no_grad():
                uneven.run(*flat, *counts)
        return _finished(out)

    def _is_library(self, comm: Communicator, name: str, nbytes: int, out: Tensor, arguments: dict[str, Any]) -> bool:
        """Return whether torch's own call is the choice, in place or not, in a graph or not."""
        dtype = "uint8"
        if "op" in arguments:
            if out.dtype not in _KINDS:
                return True
            dtype = _KINDS[out.dtype]
        asked = tuple(arguments.items())
        chosen: list[tuple[Ask, Chosen]] = []
        for in_place in (name in ("broadcast", "all_reduce"), name != "all_to_all"):
            for captured in (False,) if out.is_cpu else (False, True):
                ask = Ask(name, dtype, nbytes, asked, in_place, captured=captured)
                try:
                    chosen.append((ask, comm.choose(ask)))
                except UsageError:
                    return True
        for ask, each in chosen:
            if each.choice is not None and each.choice.config != each.config:
                self._say(f"{describe_call(ask)}: {each.why}")
        return all(each.config.algorithm == "direct" for _, each in chosen)

    def _communicator(self, tensor: Tensor) -> Communicator | None:
        """Return the communicator for tensors of this device; the first time collective."""
        on_cpu = tensor.is_cpu
        if on_cpu not in self._comms:
            if not on_cpu and torch.cuda.is_current_stream_capturing():
                return None
            self._comms[on_cpu] = self._open(tensor)
        return self._comms[on_cpu]

    def _open(self, tensor: Tensor) -> Communicator | None:
        backend = self._inner._get_backend(tensor.device).name()
        transport = {"gloo": "gloo", "nccl": "nccl"}.get(backend)
        if transport is None or (transport == "gloo") != tensor.is_cpu:
            self._say(f"calls on {tensor.device.type} go over {backend}, for which there are no profiles")
            return None
        try:
            with plain_groups():
                group = self._inner
                if transport == "gloo":
                    self._private = PrivateGroups(self._inner, self._ranks)
                    group = self._private.make()
                create.gather_or_raise(create.votes_over(group, transport), self._source.digest)
                loaded, name = self._source.loaded(), self._source.name
                if self._private is None:
                    return create.make(group, loaded.profile, name, of_program=False)
                joined = self._private.joined
                return create.make(group, loaded.profile, name, of_program=False, gloo=joined)
        except CommbenchError as error:
            self._say(describe(error))
            return None

    def _say(self, reason: str) -> None:
        if reason not in self.reasons:
            self.reasons.append(reason)
            if self._inner.rank() == 0:
                say_once(f"torch makes these calls itself: {reason}")


def _flat(tensor: Tensor) -> Tensor:
    """Return the tensor's memory; torch's own calls take it so too, however a dense tensor is strided."""
    tensor = tensor.detach()
    return tensor if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def _finished(out: Tensor) -> ProfiledWork:
    work = ProfiledWork([out])
    work.finish()
    return work


def _op(options: Any) -> str | None:
    op = getattr(options, "reduceOp", None)
    return next((name for name, kind in OPS.items() if op == kind), None)


def _counts(tensor: Tensor, split: Sequence[int], ranks: int) -> list[int]:
    """Return bytes for each rank."""
    if not len(split):
        return [tensor.nbytes // ranks] * ranks
    row = tensor.nbytes // tensor.shape[0] if tensor.shape[0] else 0
    return [int(count) * row for count in split]
