"""all_gather: every token to every rank, which takes what its experts want; back, a reduce-scatter of what they made.

The library's own two collectives, which need no counts: W - 1 rows a token, whatever the routing. Worth it where W is
small beside top_k, or the library's collectives are much better than what others are made of.
"""

from __future__ import annotations

import numpy as np

from commbench.algorithms.base import AlgorithmBase, Bound, BoundBase
from commbench.algorithms.token_exchange import Copying, make_copies, matrix, placed, said
from commbench.algorithms.token_plan import TOKENS, Copies, Planner, RankPlan, Way
from commbench.collectives import routing
from commbench.collectives.dispatch import NUMBER_BYTES, cached
from commbench.collectives.payload import payload_of
from commbench.collectives.routing import NONE, Floats, Ints
from commbench.spec import Spec, Step
from commbench.transports.base import Array, Comm, Done, Work

_WAY = Way(())


class _AllGather(AlgorithmBase):
    name = "all_gather"

    def unsupported(self, spec: Spec) -> str:
        if spec.arguments.get("counts") == "device":
            return f"{self.name} needs no counts, but reads on the host who wants what; counts=device is for GPUs alone"
        return ""

    def steps(self, spec: Spec) -> list[Step] | None:
        return None  # which way the data go is up to the library


class AllGatherDispatch(_AllGather):
    collective = "dispatch"

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.ranks * (spec.size_bytes + (0 if cached(spec) else _told_bytes(spec)))

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Dispatch(comm, spec)


class AllGatherCombine(_AllGather):
    collective = "combine"
    reduces = True

    def unsupported(self, spec: Spec) -> str:
        if payload_of(spec) is not None:
            return f"the library adds up rows as they are, and not as payload={spec.arguments['payload']}"
        return super().unsupported(spec)

    def scratch_bytes(self, spec: Spec) -> int:
        return spec.ranks * spec.size_bytes

    def prepare(self, comm: Comm, spec: Spec) -> Bound:
        return _Combine(comm, spec)


def _told_bytes(spec: Spec) -> int:
    """Return bytes of the weights and experts of a rank's tokens."""
    shape = routing.shape_of(spec)
    return shape.tokens * shape.top_k * 2 * NUMBER_BYTES


def _plan(spec: Spec, rank: int, experts: Ints, weights: Floats) -> RankPlan:
    """Return the plan of a rank that has all tokens: experts, weights [ranks, tokens, top_k]."""
    source, token = np.nonzero((experts != NONE).any(axis=2))
    at = np.full(len(token), TOKENS), source * experts.shape[1] + token
    held = Copies(*at, source, token, experts[source, token].astype(np.int64), weights[source, token])
    planner = Planner(_WAY, spec.layout, rank, routing.shape_of(spec).per_rank, held)
    return planner.plan(str(spec.arguments["output"]))


def _known_plan(spec: Spec, rank: int) -> RankPlan:
    experts, weights = routing.routing_of(spec)
    return _plan(spec, rank, experts.astype(np.int64), weights)


class _Dispatch(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm, self._spec, self._shape = comm, spec, routing.shape_of(spec)
        self._rows = comm.empty(spec.ranks * spec.size_bytes)
        self.capturable = cached(spec)
        self._told = comm.empty(0 if cached(spec) else spec.ranks * _told_bytes(spec))
        self._known: tuple[RankPlan, list[Copying]] | None = None
        if cached(spec):
            plan = _known_plan(spec, comm.rank)
            self._known = plan, placed(comm, plan)

    def start(self, out: Array, inp: Array) -> Work:
        comm, shape, spec = self._comm, self._shape, self._spec
        comm.all_gather(self._rows, inp[: spec.size_bytes], in_place=False, step="rows").wait()
        if self._known is None:
            comm.all_gather(self._told, inp[spec.size_bytes :], in_place=False, step="told").wait()
            told = comm.read(self._told).reshape(spec.ranks, 2, shape.tokens, shape.top_k * NUMBER_BYTES)
            weights, experts = (np.ascontiguousarray(told[:, kind]) for kind in (0, 1))
            plan = _plan(spec, comm.rank, experts.view(np.int32).astype(np.int64), weights.view(np.float32))
            places = placed(comm, plan)
        else:
            plan, places = self._known
        rows = matrix(self._rows, spec.ranks * shape.tokens, shape.row_bytes)
        make_copies(comm, places, matrix(out, len(plan.numbers), shape.row_bytes), [rows])
        if self._known is None:
            comm.write(out[len(plan.numbers) * shape.row_bytes :], said(plan))
        return Done()

    def close(self) -> None:
        del self._rows, self._told


class _Combine(BoundBase):
    def __init__(self, comm: Comm, spec: Spec) -> None:
        self._comm, self._spec, self._shape = comm, spec, routing.shape_of(spec)
        self._partial = comm.empty(spec.ranks * spec.size_bytes)
        self._plan = plan = _known_plan(spec, comm.rank)
        terms = plan.terms(_WAY, TOKENS, weighted=spec.arguments["output"] == "expert")
        self._sums = comm.rows.sums(spec.ranks * self._shape.tokens, terms)

    def start(self, out: Array, inp: Array) -> Work:
        comm, row, dtype = self._comm, self._shape.row_bytes, self._spec.dtype
        partial = matrix(self._partial, self._spec.ranks * self._shape.tokens, row)
        comm.rows.add(partial, [matrix(inp, len(self._plan.numbers), row)], self._sums, dtype)
        return comm.reduce_scatter(out, self._partial, dtype, "sum", in_place=False, step="rows")

    def close(self) -> None:
        del self._partial
