"""Tokens to the ranks of their experts and back, on tensors, with gradients: `dispatch` and `combine` of a program.

Which row goes where is planned as the algorithms of the collectives plan it (`commbench.algorithms.token_plan`); rows
move by all_to_allv, all_gather and reduce_scatter of the communicator. So what gathers on the way there adds up on the
way back, and in backward each is the other's adjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from commbench import payloads
from commbench.algorithms.token_plan import TOKENS, Copies, Gather, Leg, Planner, Way, own_copies
from commbench.collectives.dispatch import NUMBER_BYTES
from commbench.collectives.routing import NONE, Ints
from commbench.communicators.autograd import DifferentiableCollectives
from commbench.communicators.base import CommLike
from commbench.communicators.routed_agreement import (
    ALL_GATHER,
    PLAIN,
    WAYS,
    agree,
    all_numbers,
    not_as_payload,
    unsupported,
)
from commbench.communicators.routed_choice import DEFAULT, PROFILE, LayerAsk, RoutedChoice
from commbench.communicators.with_payload import PayloadComm
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.payloads import Payload, tensors


def told_bytes(top_k: int) -> int:
    """Return the bytes of what is told of a row: source, token and experts."""
    return NUMBER_BYTES * (2 + top_k)


def possible(found: RoutedChoice, layout: Layout, dtype: torch.dtype, asked: tuple[str, str]) -> RoutedChoice:
    """Return the profile's choice, or the default where it cannot run here, with the reason.

    asked: payloads of rows, and of their gradients.
    """
    reason = unsupported(found.algorithm, layout) or not_as_payload(found.algorithm, dtype, asked)
    if not reason:
        return found
    return RoutedChoice(algorithm=DEFAULT, why=f"{found.why}; {reason}; the default", choice=found.choice)


def layout_of(comm: CommLike) -> Layout:
    """Return the layout of the communicator, or of the one that it is around; a node, where none has one."""
    found: Any = comm
    while not hasattr(found, "layout") and hasattr(found, "comm"):
        found = found.comm
    layout: Layout = getattr(found, "layout", Layout(1, comm.size))
    return layout


class _Hop(NamedTuple):
    """rows: which of all rows that were there before go, in order. counts: rows that each rank sends to each."""

    rows: Tensor
    counts: np.ndarray


@dataclass(frozen=True)
class TokenHandle:
    """What a `combine` knows of its `dispatch`.

    counts: rows of each expert of this rank. source, token: of each row, its rank and its place there; on the host.
    weights: of each row, with gradient; None for `per_choice`, whose rows are weighed where their token is.
    """

    algorithm: str
    counts: list[int]
    source: Ints
    token: Ints
    weights: Tensor | None
    _tokens: int
    _width: int
    _dtype: torch.dtype
    _hops: list[_Hop]
    _starts: list[int]  # of each buffer among all rows, the end last
    _rows: Tensor  # where among all rows each row of the output is
    _own_weights: Tensor  # [tokens, top_k] of this rank's tokens


def dispatch(
    comm: CommLike, x: Tensor, experts: Tensor, weights: Tensor, num_experts: int, *, algorithm: str, layout: Layout,
    choose: Callable[[LayerAsk], RoutedChoice] | None = None, check: bool = True, payload: str = payloads.NONE,
    payload_back: str = payloads.NONE,
) -> tuple[Tensor, Tensor, TokenHandle]:  # fmt: skip
    """Send each token to the ranks of its experts. Collective: see `Communicator.dispatch`.

    choose: says which way `algorithm="profile"` is, once ranks have compared what they bring.
    check: ranks compare what they bring, so that an error on one is an error on all: one all_gather.
    payload, payload_back: as what rows travel, and their gradients. Every row is quantised, also one that stays on its
    rank; once more in each hop changes nothing.
    """
    if check:
        most = agree(comm, x, experts, weights, num_experts, algorithm, layout, (payload, payload_back))
        if algorithm == PROFILE and choose is not None:
            size = most * x.shape[1] * x.element_size()
            ask = LayerAsk(top_k=experts.shape[1], experts=num_experts, size_bytes=size, payload=payload)
            algorithm = choose(ask).algorithm
    way, rows_comm = WAYS[algorithm], _with_payload(comm, payload, payload_back)
    x = _as_payload(x, payload)
    tokens, top_k = experts.shape
    held_experts, held_weights, held = experts, weights, x
    if way.per_choice:  # each choice is a token with one expert
        held = _gather(x, torch.arange(tokens, device=x.device).repeat_interleave(top_k))
        held_experts, held_weights = experts.reshape(-1, 1), weights.reshape(-1, 1)
    chosen = held_experts.detach().to("cpu", torch.int64).numpy()
    if algorithm == ALL_GATHER:
        held, held_weights, copies, chosen = _gather_all(comm, rows_comm, x, weights, chosen)
    else:
        copies = own_copies(Way(way.legs), comm.rank, chosen, np.zeros(chosen.shape, np.float32))
    planner = Planner(way, layout, comm.rank, num_experts // comm.size, copies)
    starts, hops = [0, len(held)], []
    all_chosen = [chosen]
    for leg in way.legs:
        hop, told = _plan_hop(comm, planner, leg, layout, starts)
        rows = _exchange(rows_comm, _gather(held, hop.rows), hop)
        if not way.per_choice:
            arrived = _exchange(comm, held_weights.index_select(0, hop.rows), hop)
            held_weights = torch.cat([held_weights, arrived])
        held = torch.cat([held, rows])
        starts.append(len(held))
        hops.append(hop)
        all_chosen.append(told[:, 2:])
    plan = planner.plan("expert")
    numbers = plan.numbers.reshape(-1).view(np.int32).astype(np.int64).reshape(-1, 3)
    at = _places(plan.places, starts, len(numbers))
    first = comm.rank * (num_experts // comm.size)
    counts = np.bincount(numbers[:, 2] - first, minlength=num_experts // comm.size)
    row_index = _index(at, x.device)
    row_weights = None
    if not way.per_choice:
        choice = (np.concatenate(all_chosen)[at] == numbers[:, 2:]).argmax(axis=1)
        row_weights = held_weights[row_index, _index(choice, x.device)]
    handle = TokenHandle(
        algorithm, counts.tolist(), numbers[:, 0], numbers[:, 1] // (top_k if way.per_choice else 1), row_weights,
        tokens, x.shape[1], x.dtype, hops, starts, row_index, weights,
    )  # fmt: skip
    return _gather(held, row_index), torch.from_numpy(counts.astype(np.int64)).to(x.device), handle


def combine(
    comm: CommLike, y: Tensor, handle: TokenHandle, *, payload: str = payloads.NONE, payload_back: str = payloads.NONE
) -> Tensor:
    """Return for each token the weighed sum of its rows. Collective: see `Communicator.combine`."""
    if y.dim() != 2 or len(y) != len(handle.source):
        hint = f"a row for each of the {len(handle.source)} rows that dispatch returned, in their order"
        raise UsageError(f"combine: y is {tuple(y.shape)}", hint=hint)
    if wrong := not_as_payload(handle.algorithm, y.dtype, (payload, payload_back)):
        raise UsageError(f"combine: {wrong}", hint=PLAIN)
    rows_comm = _with_payload(comm, payload, payload_back)
    weights = handle._own_weights if handle.weights is None else handle.weights
    wide = torch.promote_types(torch.promote_types(y.dtype, weights.dtype), torch.float32)
    given = y.to(wide)
    if handle.weights is not None:
        given = given * handle.weights.to(wide)[:, None]
    starts = handle._starts
    held = given.new_zeros(starts[-1], y.shape[1]).index_add(0, handle._rows, given)
    for number, hop in reversed([*enumerate(handle._hops)]):
        start, end = starts[number + 1 : number + 3]
        back = hop._replace(counts=hop.counts.T)
        returned = _exchange(rows_comm, held[start:end].to(y.dtype), back)
        held = held[:start].index_add(0, hop.rows, returned.to(wide))
    if handle.algorithm == ALL_GATHER:
        summed = DifferentiableCollectives(rows_comm).reduce_scatter(held.to(y.dtype).contiguous())
        return summed[: handle._tokens]
    if handle.weights is None:
        held = held.view(*weights.shape, y.shape[1]) * weights.to(wide)[..., None]
        held = held.sum(dim=1)
    return held.to(y.dtype)


def _with_payload(comm: CommLike, payload: str, payload_back: str) -> CommLike:
    return comm if payload == payload_back == payloads.NONE else PayloadComm(comm, payload, backward=payload_back)


class _RoundTrip(torch.autograd.Function):
    """Rows as they are once they have travelled as a payload; their gradients pass as they are."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, payload: Payload) -> Tensor:
        return tensors.dequantise(tensors.quantise(x, payload), x.shape[1], x.dtype, payload)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _as_payload(x: Tensor, name: str) -> Tensor:
    payload = payloads.get(name)
    if payload is None or not payload.changes(tensors.DTYPES[x.dtype]):
        return x
    found: Tensor = _RoundTrip.apply(x, payload)  # type: ignore[no-untyped-call]
    return found


def _gather_all(
    comm: CommLike, rows_comm: CommLike, x: Tensor, weights: Tensor, chosen: Ints
) -> tuple[Tensor, Tensor, Copies, Ints]:
    """Return the rows, weights, copies and experts of all ranks, each rank padded to as many tokens as the most have.

    Padding has no expert, and takes no part in what follows.
    """
    tokens, top_k = chosen.shape
    most = int(all_numbers(comm, [tokens]).max())
    told = torch.full((most, top_k), NONE, dtype=torch.int64)
    told[:tokens] = torch.from_numpy(chosen)
    told_all = torch.empty(comm.size * most, top_k, dtype=torch.int64, device=comm.device)
    comm.all_gather(told_all, told.to(comm.device))
    padding = (0, 0, 0, most - tokens)
    padded, padded_weights = (torch.nn.functional.pad(tensor, padding) for tensor in (x, weights))
    rows = DifferentiableCollectives(rows_comm).all_gather(padded.contiguous())
    all_weights = DifferentiableCollectives(comm).all_gather(padded_weights.contiguous())
    experts = told_all.cpu().numpy()
    (at,) = np.nonzero((experts != NONE).any(axis=1))
    source, token = np.divmod(at, max(1, most))
    nothing = np.zeros((len(at), top_k), np.float32)
    return rows, all_weights, Copies(np.full(len(at), TOKENS), at, source, token, experts[at], nothing), experts


def _plan_hop(comm: CommLike, planner: Planner, leg: Leg, layout: Layout, starts: list[int]) -> tuple[_Hop, Ints]:
    """Plan one hop with the other ranks: return it, and what was told of the rows that come, numbers in a row each."""
    group = next(ranks for ranks in leg.groups(layout) if comm.rank in ranks)
    planned = planner.outgoing(leg)
    sent = [0] * comm.size
    for peer, count in zip(group, planned.sent, strict=True):
        sent[peer] = count
    counts = all_numbers(comm, sent)
    received = counts[:, comm.rank].tolist()
    weights_bytes = (planned.told.shape[1] - 2 * NUMBER_BYTES) // 2  # which travel with their gradients, or not at all
    going = torch.from_numpy(np.ascontiguousarray(planned.told[:, :-weights_bytes])).to(comm.device)
    arrived = going.new_empty(sum(received), going.shape[1])
    comm.all_to_allv(arrived, going, received, sent)
    told = arrived.cpu().numpy()
    planner.incoming(np.pad(told, ((0, 0), (0, weights_bytes))), [received[peer] for peer in group])
    at = _places(planned.gathers, starts, sum(sent))
    numbers = told.view(np.int32).astype(np.int64)
    return _Hop(_index(at, comm.device), counts), numbers


def _places(gathers: list[Gather], starts: list[int], count: int) -> Ints:
    """Return for each of `count` rows where it comes from, among the rows of all buffers one after the other."""
    at = np.zeros(count, np.int64)
    for gather in gathers:
        at[gather.to] = starts[gather.buffer] + gather.source
    return at


def _index(numbers: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers, np.int64)).to(device)


def _exchange(comm: CommLike, rows: Tensor, hop: _Hop) -> Tensor:
    sent, received = hop.counts[comm.rank].tolist(), hop.counts[:, comm.rank].tolist()
    return DifferentiableCollectives(comm).all_to_allv(rows.contiguous(), received, sent, matrix=hop.counts.tolist())


class _Gather(torch.autograd.Function):
    """Rows of a tensor by number; backward their gradients are added up in fp32 at least, and rounded once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), (index,) = gradients, ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.new_zeros(ctx.length, *gradient.shape[1:], dtype=wide)
        return total.index_add(0, index, gradient.to(wide)).to(gradient.dtype), None


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    found: Tensor = _Gather.apply(rows, index)  # type: ignore[no-untyped-call]
    return found
