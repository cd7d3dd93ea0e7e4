"""What tests of communicators share: ranks that think they are on nodes, profiles of one scope, checked calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from commbench.communicators import create
from commbench.communicators.communicator import Communicator
from commbench.communicators.loaded import LoadedProfile
from commbench.profile import Choice
from tests.support import profiles

DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64)


def nodes_of(per_node: int) -> None:
    """In a rank: let so many consecutive ranks think that they share a host."""
    create.host_id = lambda: f"host-{dist.get_rank() // per_node}"  # type: ignore[assignment]


def by(*choices: Choice, **scope: Any) -> Communicator:
    return LoadedProfile(profiles.profile(*choices, **scope)).communicator()


def raises(kind: type[BaseException], call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    text = f"{caught.value} {getattr(caught.value, 'hint', '')}"
    assert all(word in text for word in words), text


def numbers(rank: int, *shape: int, dtype: torch.dtype = torch.float32, salt: int = 0) -> torch.Tensor:
    """What a rank brings: other numbers on every rank and in every call."""
    generator = torch.Generator().manual_seed(1000 * salt + rank)
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


def check_all_to_all(comm: Communicator, rows: int, *, dtype: torch.dtype = torch.float32, calls: int = 4) -> None:
    """On the same buffers several times, so that the ways of fresh tensors and of seen ones are both taken."""
    n = comm.size
    out, inp = torch.empty(n * rows, dtype=dtype), torch.empty(n * rows, dtype=dtype)
    for salt in range(calls):
        inp.copy_(numbers(comm.rank, n * rows, dtype=dtype, salt=salt))
        out.zero_()
        comm.all_to_all(out, inp)
        parts = [numbers(src, n * rows, dtype=dtype, salt=salt)[comm.rank * rows :][:rows] for src in range(n)]
        assert torch.equal(out, torch.cat(parts)), (rows, dtype, salt)


def check_all_to_allv(
    comm: Communicator, matrix: list[list[int]], known: list[list[int]] | None, salt: int, width: int = 4
) -> None:
    """Twice on the same buffers. All counts of a rank may be 0."""
    me, n = comm.rank, comm.size
    sent, received = matrix[me], [row[me] for row in matrix]
    inp = numbers(me, sum(sent), width, salt=salt)
    out = torch.empty(sum(received), width)
    parts = []
    for src in range(n):
        start = sum(matrix[src][:me])
        parts.append(numbers(src, sum(matrix[src]), width, salt=salt)[start : start + matrix[src][me]])
    for _ in range(3):
        out.zero_()
        comm.all_to_allv(out, inp, received, sent, matrix=known)
        assert torch.equal(out, torch.cat(parts))
