"""The buffers of a case: input and output pairs, cut from as few allocations as can be."""

from __future__ import annotations

import functools

from commbench.collectives.base import Collective
from commbench.spec import Spec
from commbench.transports.base import Array, Transport

_ALIGNMENT = 256  # of symmetric buffers
Pair = tuple[Array, Array]  # output, input


def nbytes(collective: Collective, spec: Spec, rank: int) -> int:
    """Bytes of one pair of input and output."""
    shared = collective.in_place(spec, rank) if spec.in_place else None
    return shared.nbytes if shared else collective.input_bytes(spec, rank) + collective.output_bytes(spec, rank)


def allocate(
    transport: Transport, collective: Collective, spec: Spec, rank: int, count: int, *, one_sided: bool
) -> list[Pair]:
    """`count` (output, input) pairs, cut from one or two buffers: thousands of small allocations would take long."""
    inputs, outputs = collective.input_bytes(spec, rank), collective.output_bytes(spec, rank)
    shared = collective.in_place(spec, rank) if spec.in_place else None
    empty = functools.partial(transport.world.empty, buffers=spec.buffers, one_sided=one_sided)
    if shared:
        whole = empty(shared.nbytes * count)
        starts = [(i * shared.nbytes + shared.output_at, i * shared.nbytes + shared.input_at) for i in range(count)]
        return [(whole[o : o + outputs], whole[i : i + inputs]) for o, i in starts]
    # From one pair to the next; in symmetric buffers as far as the rank with the largest needs.
    in_step, out_step = inputs, outputs
    if spec.buffers == "symmetric":
        in_step = _aligned(max(collective.input_bytes(spec, other) for other in range(spec.ranks)))
        out_step = _aligned(max(collective.output_bytes(spec, other) for other in range(spec.ranks)))
    out, inp = (
        transport.world.host_buffer(step * count, pinned=host == "pinned") if host else empty(step * count)
        for host, step in zip(collective.host_memory(spec), (out_step, in_step), strict=True)
    )
    return [(out[i * out_step :][:outputs], inp[i * in_step :][:inputs]) for i in range(count)]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
