"""symm_per_rank, symm_slots: tokens go straight into the memory of the ranks of their experts, with nobody receiving.

For ranks that reach each other's memory: GPUs of one host. The output must be symmetric memory. One kernel a call,
which permutes while it sends, and adds up while it receives; the host knows nothing of where rows go.

symm_per_rank  a row for each rank that has an expert of the token. Ranks tell each other first how many come for each
               expert, so that rows are stored where they belong; a row with more than one place there is copied by the
               rank itself. Back, each rank stores the sum of what its experts made of a token.
symm_slots     as `slots`: a slot for each token of each rank, and nothing told before, which is one link latency less.
               For few tokens, as in decoding: every block of threads is told all choices.
"""

from __future__ import annotations

from collections.abc import Sequence

from commbench_kernels import scratch
from commbench_kernels.routed import RowShape

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.collectives import routing
from commbench.collectives.dispatch import NUMBER_BYTES, cached
from commbench.collectives.payload import payload_of
from commbench.spec import Send, Spec, Step
from commbench.transports.base import Array, Comm, Done, Ready, RowPutPlan, Work

_MOST_CHOICES = 1 << 15  # of a rank's tokens, that every block of threads is told
_COUNTS, _ROWS = "counts_world", "rows"
_CTAS = {"ctas": (0, "thread blocks of a one-sided kernel; 0: by the size")}


class _OneSidedRows(AlgorithmBase):
    name: str
    collective: str
    one_sided = True
    slots = False
    params = _CTAS
    tries = {"ctas": (0, 32, 64)}

    def unsupported(self, spec: Spec) -> str:
        if spec.layout.nodes != 1:
            return "ranks write into each other's memory, so all of them must be on one node"
        if spec.buffers != "symmetric":
            return "others write into the output: it needs buffers=symmetric"
        if not 0 <= spec.params["ctas"] <= scratch.BLOCKS:
            return f"ctas={spec.params['ctas']}: 1 to {scratch.BLOCKS}, or 0 to choose by the size"
        return _shape(spec).unsupported(slots=self.slots)

    def multiprocessors(self, spec: Spec) -> int:
        return self._blocks(spec)

    def _blocks(self, spec: Spec) -> int:
        told = self.slots and self.collective == "dispatch"
        return _shape(spec).blocks(spec.params["ctas"], told=told)

    def steps(self, spec: Spec) -> list[Step]:
        raise NotImplementedError

    def _bound(self, comm: Comm, spec: Spec, *, combines: bool, told: bool, waits: bool) -> Bound:
        shape, (experts, weights) = _shape(spec), routing.routing_of(spec)
        steps = self.steps(spec)
        sends = [(step.name, send.dst, send.nbytes) for step in steps for send in step.sends if send.src == comm.rank]
        plan = RowPutPlan(
            combines=combines, slots=self.slots, told=told, waits=waits, row_bytes=shape.row_bytes,
            per_rank=shape.per_rank, by_expert=shape.by_expert, dtype=spec.dtype, experts=experts, weights=weights,
            ctas=self._blocks(spec), scratch_bytes=self.scratch_bytes(spec),
            steps=[step.name for step in steps], sends=sends,
        )  # fmt: skip
        return _Bound(comm, plan)

    def scratch_bytes(self, spec: Spec) -> int:
        raise NotImplementedError


class _Dispatch(_OneSidedRows):
    collective = "dispatch"

    def steps(self, spec: Spec) -> list[Step]:
        shape, told = _shape(spec), not cached(spec)
        row = shape.row_bytes + (0 if self.slots or not told else _told_bytes(shape))
        choices = shape.tokens * shape.top_k * NUMBER_BYTES * (1 + told) if self.slots else 0
        rows = Step(name=_ROWS, sends=_sends(spec, row, choices), after=() if self.slots else (_COUNTS,))
        if self.slots:
            return [rows]
        pairs = [(src, dst) for src in range(spec.ranks) for dst in range(spec.ranks) if src != dst]
        return [Step(name=_COUNTS, sends=tuple(Send(*pair, shape.bins * NUMBER_BYTES) for pair in pairs)), rows]

    def scratch_bytes(self, spec: Spec) -> int:
        return _shape(spec).dispatch_scratch(self._blocks(spec), slots=self.slots)

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        waits = spec.arguments["counts"] == "host"
        return self._bound(comm, spec, combines=False, told=not cached(spec), waits=waits)


class _Combine(_OneSidedRows):
    collective = "combine"

    def unsupported(self, spec: Spec) -> str:
        if payload_of(spec) is not None:
            return f"{self.name} adds up rows as they are, without a payload"
        return super().unsupported(spec)

    def steps(self, spec: Spec) -> list[Step]:
        back = [Send(dst, src, nbytes) for src, dst, nbytes in _sends(spec, _shape(spec).row_bytes, 0)]
        return [Step(name=_ROWS, sends=tuple(back))]

    def scratch_bytes(self, spec: Spec) -> int:
        return _shape(spec).combine_scratch(slots=self.slots)

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return self._bound(comm, spec, combines=True, told=False, waits=False)


class SymmPerRankDispatch(_Dispatch):
    name = "symm_per_rank"


class SymmPerRankCombine(_Combine):
    name = "symm_per_rank"


class _Slots:
    slots = True

    def unsupported(self, spec: Spec) -> str:
        shape = routing.shape_of(spec)
        if shape.tokens * shape.top_k > _MOST_CHOICES:
            return f"{shape.tokens} tokens with {shape.top_k} experts each: symm_slots is for {_MOST_CHOICES} at most"
        return str(super().unsupported(spec))  # type: ignore[misc]


class SymmSlotsDispatch(_Slots, _Dispatch):
    name = "symm_slots"


class SymmSlotsCombine(_Slots, _Combine):
    name = "symm_slots"


def _shape(spec: Spec) -> RowShape:
    shape = routing.shape_of(spec)
    return RowShape(
        ranks=spec.ranks, tokens=shape.tokens, top_k=shape.top_k, per_rank=shape.per_rank, row_bytes=shape.row_bytes,
        by_expert=spec.arguments["output"] == "expert",
    )  # fmt: skip


def _told_bytes(shape: RowShape) -> int:
    """Return the bytes that are told of a row: source, token, experts and weights."""
    return NUMBER_BYTES * (2 + 2 * shape.top_k)


def _sends(spec: Spec, row: int, beside: int) -> tuple[Send, ...]:
    """Return what ranks send each other in rows of so many bytes, one for each token, and `beside` them."""
    counts = routing.counts_of(spec).ranks
    pairs = [(src, dst) for src in range(spec.ranks) for dst in range(spec.ranks) if src != dst]
    found = [Send(src, dst, int(counts[src, dst]) * row + beside) for src, dst in pairs]
    return tuple(send for send in found if send.nbytes)


class _Bound(BoundBase):
    def __init__(self, comm: Comm, plan: RowPutPlan) -> None:
        self._puts = comm.row_puts(plan)
        self.capturable = not plan.waits

    def bind(self, pairs: Sequence[tuple[Array, Array]]) -> list[Ready]:
        return [self._puts.ready(out, inp) for out, inp in pairs]

    def start(self, out: Array, inp: Array) -> Work:
        return self._puts.ready(out, inp)() or Done()

    def close(self) -> None:
        self._puts.close()
