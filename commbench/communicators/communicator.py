"""The communicator: collectives on a program's tensors, by the algorithms that a profile has for them.

All ranks of its group make the same calls in the same order, each from one thread. A call on tensors that have been
seen goes straight to the algorithm; of others the tensors are checked, the choice is looked up, and what it needs is
prepared at the first call of its kind.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn, Self

import torch

from commbench import payloads
from commbench.algorithms.base import CountsInside
from commbench.collectives.meshes import Box
from commbench.communicators import requests, resharding, routed, routed_choice
from commbench.communicators.autograd import DifferentiableCollectives
from commbench.communicators.call_cache import CallCache
from commbench.communicators.explain import CommunicatorInfo, evidence, explain
from commbench.communicators.prepared import Pending
from commbench.communicators.requests import CallContext, CallRequest
from commbench.communicators.resharding import Place
from commbench.communicators.routed import TokenHandle
from commbench.communicators.routed_choice import PROFILE, LayerAsk, RoutedChoice
from commbench.communicators.select import PEER, PLAIN, Ask, Chooser, Chosen
from commbench.communicators.with_payload import PayloadComm
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.spec import Value
from commbench.transports.existing_group import Joined

Tensor = torch.Tensor
_REQUESTS: dict[str, Callable[..., CallRequest]] = {
    function.__name__: function
    for function in (
        requests.all_to_all,
        requests.all_to_allv,
        requests.all_gather,
        requests.reduce_scatter,
        requests.all_reduce,
        requests.broadcast,
        requests.tp_all_to_all,
    )
}


class Communicator:
    """Collectives over one process group. `LoadedProfile.communicator` and `commbench.communicator` make it.

    `out` and `inp` are contiguous tensors of one dtype on `device`. A call on a GPU is enqueued on the current stream,
    one on a CPU is done when it returns. With `async_op=True` it returns a `Pending`, whose `wait()` must come before
    the buffers are used again. Tensors that do not fit raise `UsageError`, and nothing is sent.
    """

    def __init__(self, transport: Joined, layout: Layout, chooser: Chooser, info: CommunicatorInfo) -> None:
        self.rank, self.size, self.layout, self.machines = transport.rank, transport.size, layout, info.machines
        self.device = transport.place
        on_cpu, index = transport.place.type == "cpu", transport.place.index
        self._context = CallContext(transport.rank, transport.size, layout, transport.place, on_cpu, index)
        self._transport, self._chooser, self._info = transport, chooser, info
        self._calls = CallCache(transport, chooser)
        self._seen, self._run = self._calls.seen, self._calls.run
        self._dispatches: dict[
            tuple[LayerAsk, str, str], tuple[LayerAsk, RoutedChoice]
        ] = {}  # in the order of first calls

    def __deepcopy__(self, memo: object) -> Communicator:
        """Return this one: copies of a layer, as of an average of weights, share its ranks."""
        return self

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "a communicator is of ranks that run, and cannot be pickled, nor can a layer that has one",
            hint="save state_dict() of the model, and load it into one that is made anew",
        )

    def all_to_all(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        """Send block i of `inp` to rank i, receive block i of `out` from it: `size` equal blocks, in memory order.

        Any shapes of the same number of elements, a multiple of `size`.
        """
        seen = self._seen.get(("all_to_all", id(out), id(inp)))
        if seen is not None and not async_op and seen.again(out, inp):
            return None
        return self._run(requests.all_to_all(self._context, out, inp), async_op=async_op)

    def all_to_allv(
        self, out: Tensor, inp: Tensor, received: Sequence[int], sent: Sequence[int], *,
        matrix: Sequence[Sequence[int]] | None = None, async_op: bool = False,
    ) -> Pending | None:  # fmt: skip
        """Send `sent[i]` rows of `inp` to rank i, receive `received[i]` rows of `out` from it, in rank order.

        `matrix[i][j]` is what rank i sends to rank j, in rows and the same on all ranks: see `exchange_counts`. Without
        it no rank knows how much the others move, so they can agree on the library's own call only.
        """
        if matrix is None:
            seen = self._seen.get(("all_to_allv", id(out), id(inp), tuple(received), tuple(sent)))
            if seen is not None and not async_op and seen.again(out, inp):
                return None
        return self._run(requests.all_to_allv(self._context, out, inp, received, sent, matrix), async_op=async_op)

    def all_gather(self, out: Tensor, inp: Tensor, *, async_op: bool = False) -> Pending | None:
        """Gather every rank's `inp` in `out`, in rank order: `size` times its elements. `inp` may be part of it."""
        seen = self._seen.get(("all_gather", id(out), id(inp)))
        if seen is not None and not async_op and seen.again(out, inp):
            return None
        return self._run(requests.all_gather(self._context, out, inp), async_op=async_op)

    def reduce_scatter(self, out: Tensor, inp: Tensor, op: str = "sum", *, async_op: bool = False) -> Pending | None:
        """Combine all ranks' `inp` by `op` (sum, prod, min, max); `out` is part `rank` of it, or in place in `inp`."""
        seen = self._seen.get(("reduce_scatter", id(out), id(inp), op))
        if seen is not None and not async_op and seen.again(out, inp):
            return None
        return self._run(requests.reduce_scatter(self._context, out, inp, op), async_op=async_op)

    def all_reduce(
        self, out: Tensor, inp: Tensor | None = None, op: str = "sum", *, async_op: bool = False
    ) -> Pending | None:
        """Combine all ranks' `inp` by `op`: sum, prod, min, max. Without `inp`, `out` is both."""
        inp = out if inp is None else inp
        seen = self._seen.get(("all_reduce", id(out), id(inp), op))
        if seen is not None and not async_op and seen.again(out, inp):
            return None
        return self._run(requests.all_reduce(self._context, out, inp, op), async_op=async_op)

    def broadcast(self, tensor: Tensor, root: int = 0, *, async_op: bool = False) -> Pending | None:
        """Copy rank `root`'s `tensor` to all ranks."""
        seen = self._seen.get(("broadcast", id(tensor), id(tensor), root))
        if seen is not None and not async_op and seen.again(tensor, tensor):
            return None
        return self._run(requests.broadcast(self._context, tensor, root), async_op=async_op)

    def tp_all_to_all(
        self, out: Tensor, inp: Tensor, *, tp: int | None = None, tp_input: str = "replicated", async_op: bool = False
    ) -> Pending | None:
        """Exchange between tensor-parallel groups of `tp` consecutive ranks of a node (None: all of a node).

        Block d of `inp`, of `size / tp` equal ones, goes to group d, and each rank of a group ends with the same `out`.
        Ranks of a group hold the same `inp` (`tp_input="replicated"`), or each a summand of it (`"partial"`).
        """
        seen = self._seen.get(("tp_all_to_all", id(out), id(inp), tp, tp_input))
        if seen is not None and not async_op and seen.again(out, inp):
            return None
        return self._run(requests.tp_all_to_all(self._context, out, inp, tp, tp_input), async_op=async_op)

    @functools.cached_property
    def autograd(self) -> DifferentiableCollectives:
        """Return the collectives as functions of their input, which carry gradients back by their adjoints."""
        return DifferentiableCollectives(self)

    def with_payload(self, payload: str, *, backward: str = payloads.NONE) -> PayloadComm:
        """Return a communicator that sends rows of all_to_all and all_to_allv as a payload, and all else as it is.

        `payload`: `bf16`, `fp8`, `mxfp8`, `int8` or `none`; `backward`: of what carries gradients back. What travels
        goes by the profile's choices for so many bytes.
        """
        return PayloadComm(self, payload, backward=backward)

    def exchange_counts(self, sent: Sequence[int]) -> list[list[int]]:
        """Return every rank's `sent`: row i, column j is what rank i sends to rank j. Collective.

        `received` is a column of it: what a Mixture-of-Experts layer has to exchange anyway. Waits on the host.
        """
        self._calls.check_open()
        requests.check_counts("exchange_counts", "sent", sent, self.size)
        return [[int(count) for count in row] for row in self._transport.all_gather([float(n) for n in sent]).tolist()]

    def dispatch(
        self, x: Tensor, experts: Tensor, weights: Tensor, *, num_experts: int, algorithm: str = PROFILE,
        payload: str = payloads.NONE, payload_back: str = payloads.NONE,
    ) -> tuple[Tensor, Tensor, TokenHandle]:  # fmt: skip
        """Send tokens to the ranks of their experts: rows by expert, their counts, and a handle for `combine`.

        x: [tokens, width]. experts, weights: [tokens, top_k], of `num_experts` that ranks have in equal numbers, in
        order; -1: no expert. Ranks may bring different numbers of tokens. algorithm: `per_choice`, `per_rank`,
        `per_node`, `all_gather` (docs/guide/dispatch.md), or `profile`: its choice, without one `per_choice`. rows: one
        for each choice of an expert of this rank, by expert, source rank, token; counts: int64, of each of this rank's
        experts. Waits on the host. Rows and weights carry gradients. payload, payload_back: as what rows travel, and
        their gradients (`bf16`, `fp8`, `mxfp8`, `int8`), which pass quantising as if it were not there. Raises
        `UsageError` on all ranks where one brings what cannot be.
        """
        self._calls.check_open()
        found = routed.dispatch(
            self, x, experts, weights, num_experts, algorithm=algorithm, layout=self.layout, payload=payload,
            payload_back=payload_back, choose=lambda ask: self.choose_dispatch(ask, x.dtype, payload_back),
        )  # fmt: skip
        if algorithm != PROFILE:
            ask = LayerAsk(top_k=experts.shape[1], experts=num_experts, size_bytes=x.nbytes, payload=payload)
            self._keep(ask, RoutedChoice(algorithm=algorithm, why="the call asks for it"))
        return found

    def choose_dispatch(self, ask: LayerAsk, dtype: torch.dtype, payload_back: str = payloads.NONE) -> RoutedChoice:
        """Return the way that the profile has for a dispatch, and keep it for `explain`. Not collective.

        payload_back: as what gradients travel.
        """
        found = routed_choice.choose(self._chooser.tuned("dispatch"), ask)
        return self._keep(ask, routed.possible(found, self.layout, dtype, (ask.payload, payload_back)))

    def _keep(self, ask: LayerAsk, found: RoutedChoice) -> RoutedChoice:
        # Sizes may differ from call to call: the first one of each way is told.
        self._dispatches.setdefault((replace(ask, size_bytes=0), found.algorithm, found.why), (ask, found))
        return found

    def combine(
        self, y: Tensor, handle: TokenHandle, *, payload: str = payloads.NONE, payload_back: str = payloads.NONE
    ) -> Tensor:
        """Return for each token of the dispatch the sum of what experts made of its rows, times their weights.

        y: [rows, any width], in the order of the dispatch's rows. Sums are made in fp32 at least; what ranks and nodes
        send on is rounded to the dtype of `y`. payload, payload_back: as what rows travel, sums of parts too, and their
        gradients.
        """
        self._calls.check_open()
        return routed.combine(self, y, handle, payload=payload, payload_back=payload_back)

    def reshard(
        self, tensors: Sequence[Tensor | None] | None, src: Place | Sequence[Place], dst: Place | Sequence[Place], *,
        algorithm: str = resharding.DEFAULT, **params: int,
    ) -> list[Tensor | None]:  # fmt: skip
        """Return this rank's parts on `dst` of tensors of which it gives its parts on `src`. Collective.

        tensors: this rank's part of each, None where it has none; None for all: it is not on `src`. src, dst: a mesh in
        words (`ep2-tp4`, `dp2@4`: `ep` cuts the first dimension, `tp` the last, `dp` copies; src on the first ranks,
        dst on the last ones), or a DeviceMesh with placements, `(mesh, [Shard(0), Replicate()])`; a list of them has
        one for each tensor. Parts are those that DTensor makes, also of lengths that do not divide. The result has None
        where this rank is not on `dst`. All tensors travel together; `algorithm`, `chunks`, `balance` as in a sweep of
        `reshard`. Raises `UsageError` on all ranks where one brings what cannot be.
        """
        self._calls.check_open()
        self._transport.overlap(False)
        return resharding.reshard(
            self._transport.world, self._transport.all_gather, self.layout, self.device, tensors, src, dst, algorithm,
            params,
        )  # fmt: skip

    def reshard_boxes(self, held: Sequence[Mapping[Box, Tensor]], wanted: Sequence[Box | None]) -> list[Tensor | None]:
        """Return of each tensor the box that this rank wants, where boxes lie as they like. Collective.

        held: of each tensor the boxes, `((from, to), ..)` in each dimension, that this rank has, with their elements.
        A box that several ranks want is read from one that has it, and goes into each node once. Raises `UsageError`
        on all ranks where what is held does not make up what is wanted, each element once.
        """
        self._calls.check_open()
        self._transport.overlap(False)
        return resharding.reshard_boxes(
            self._transport.world, self._transport.all_gather, self.layout, self.device, held, wanted
        )

    def prepare(self, collective: str, *given: Any, async_op: bool = False, **named: Any) -> None:
        """Do all that the first such call would do, but the call: `comm.prepare("all_to_all", out, inp)`. Collective.

        On a GPU calls in a CUDA graph are prepared too, as inside of a capture it would be too late, and those with
        `async_op=True` are calls of another kind.
        """
        if collective not in _REQUESTS:
            raise UsageError(f"prepare: collective is {collective!r}", hint=f"one of {', '.join(_REQUESTS)}")
        self._calls.prepare(_REQUESTS[collective](self._context, *given, **named), async_op=async_op)

    def empty(
        self, shape: int | Sequence[int], dtype: torch.dtype | None = None, *, collective: str = "all_to_all",
        size_bytes: int | None = None, captured: bool = False, **arguments: Value,
    ) -> Tensor:  # fmt: skip
        """Return an uninitialised tensor in the memory that the choice for this collective and size needs.

        `size_bytes`: the call's, where it is not this tensor's own (the input of an all_gather); `captured`: for calls
        in a CUDA graph. Where that memory is registered or symmetric this is collective, of one size on all ranks, and
        the memory is kept until `close`. `arguments`: the call's, by name, where they are not the default.
        Raises `MemoryError` on all ranks where one lacks it.
        """
        self._calls.check_open()
        lengths = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = dtype or torch.get_default_dtype()
        nbytes = math.prod(lengths) * dtype.itemsize
        size = size_bytes or nbytes
        asked = requests.settle_arguments(collective, self.layout, size, arguments)
        captured = captured and self._chooser.captures(collective)
        memory = self._chooser.memory(Ask(collective, "uint8", size, asked, captured=captured))
        buffers, one_sided = ("symmetric", True) if memory == PEER else (memory, False)
        unsupported = "" if memory == PLAIN else self._transport.unsupported(buffers, one_sided=one_sided)
        if unsupported:
            self._info.unsupported[buffers] = unsupported
        if memory == PLAIN or unsupported or not nbytes:
            return torch.empty(lengths, dtype=dtype, device=self.device)
        flat = self._allocate(nbytes, buffers, one_sided=one_sided)
        self._calls.owned[flat.untyped_storage().data_ptr()] = flat, memory
        return flat[:nbytes].view(dtype).view(lengths)

    def _allocate(self, nbytes: int, buffers: str, *, one_sided: bool) -> Tensor:
        """Allocate on all ranks, or on none. Collective."""
        failure, flat = "", None
        try:
            flat = self._transport.world.empty(nbytes, buffers, one_sided=one_sided)
        except Exception as error:
            if not self._transport.is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        if self._transport.all_gather([float(bool(failure))]).any():
            self._transport.withdraw()
            raise MemoryError(f"no {nbytes} bytes of {buffers} memory: {failure or 'another rank lacks it'}")
        self._transport.publish()
        assert isinstance(flat, torch.Tensor)
        return flat

    def choose(self, ask: Ask, *, counts: bool = True) -> Chosen:
        """Return what a call would take. Raises `UsageError` where no algorithm can do it. Not collective.

        Without `counts`: what an uneven exchange would take whose counts are still to be found out.
        """
        return self._chooser.choose(ask, counts=counts)

    def counts_inside(self, chosen: Chosen) -> CountsInside | None:
        """Return the chosen exchange for counts of which each rank knows its own; None where it has no such form.

        Collective. `chosen` is the same on all ranks.
        """
        made = chosen.algorithm.counts_inside
        return None if made is None else made(self._transport.world, chosen.spec)

    def explain(self) -> str:
        """Return in words the set-up, how it differs from the profile's scope, and the choice for each kind of call."""
        lines = [explain(self._info, self._calls.explained)]
        for ask, found in self._dispatches.values():
            lines.append(routed_choice.describe(ask, found))
            if found.choice is not None:
                lines += evidence(found.choice, ask.size_bytes)
        return "\n".join(lines)

    def close(self) -> None:
        """Free what was made. Graphs that hold calls must be gone; the group stays the program's. Collective."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:  # after an exception other ranks may not come
            self.close()
