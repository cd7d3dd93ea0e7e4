"""Communicators on two GPUs or more: NCCL, stores and copy engines, registered memory, graphs, streams, gradients."""

from __future__ import annotations

import os
from typing import Any

import pytest

from commbench import transports
from commbench.machine import gpus

if gpus.count(os.environ) < 2:
    pytest.skip("needs two GPUs", allow_module_level=True)
if reason := transports.missing("nccl"):
    pytest.skip(reason, allow_module_level=True)

from commbench.communicators.communicator import Communicator
from commbench.communicators.loaded import LoadedProfile
from tests.support import profiles
from tests.support.ranks import on_ranks

RANKS = 2


def brought(comm: Communicator, rank: int, elements: int, salt: int) -> Any:
    import torch

    return torch.arange(elements, dtype=torch.float32, device=comm.device) + 1000 * rank + 100_000 * salt


def check(comm: Communicator, out: Any, inp: Any, *, graph: Any = None, **asked: Any) -> None:
    import torch

    part = inp.numel() // comm.size
    for salt in range(3):
        inp.copy_(brought(comm, comm.rank, inp.numel(), salt).view(inp.shape))
        out.zero_()
        if graph is not None:
            graph.replay()
        elif (work := comm.all_to_all(out, inp, **asked)) is not None:
            work.wait()
        parts = [brought(comm, src, inp.numel(), salt)[comm.rank * part :][:part] for src in range(comm.size)]
        assert torch.equal(out.view(-1), torch.cat(parts)), salt


def symmetric(name: str, first: int, last: int | None) -> Any:
    plain = profiles.config("all_to_all", "pairwise")
    return profiles.choice("all_to_all", name, first, last, buffers="symmetric", on_plain=plain)


def test_every_memory_and_graphs() -> None:
    def rank(transport: Any) -> None:
        import torch

        made = profiles.profile(
            symmetric("symm_store", 0, (1 << 20) - 1),
            profiles.choice("all_to_all", "direct", 1 << 20, (4 << 20) - 1, buffers="registered"),
            symmetric("symm_copy_engine", 4 << 20, None),
            transport="nccl",
        )
        comm = LoadedProfile(made).communicator()
        for elements in (1 << 12, 1 << 19, 1 << 21):
            out, inp = comm.empty(elements), comm.empty(elements)
            for asked in ({}, {"async_op": True}):
                check(comm, out, inp, **asked)
            plain = torch.empty(elements, device=comm.device), torch.empty(elements, device=comm.device)
            check(comm, *plain)
            other = torch.cuda.Stream()
            other.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(other):
                check(comm, out, inp)
            torch.cuda.current_stream().wait_stream(other)
            for pair in ((out, inp), plain):
                comm.prepare("all_to_all", *pair)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                    comm.all_to_all(*pair)
                check(comm, *pair, graph=graph)
                torch.cuda.synchronize()
                graph.reset()
        told = comm.explain()
        for name in ("symm_store", "symm_copy_engine", "pairwise", "registered buffers: direct"):
            assert name in told, told
        comm.close()

    on_ranks("nccl", RANKS, rank)


def test_gradients_and_the_default_stream() -> None:
    def rank(transport: Any) -> None:
        import torch

        import commbench

        torch.cuda.set_stream(torch.cuda.default_stream())
        comm = commbench.communicator()
        inp = torch.randn(4, 8, device=comm.device, requires_grad=True)
        comm.autograd.all_to_all(inp).square().sum().backward()
        torch.testing.assert_close(inp.grad, 2 * inp.detach())
        gathered = comm.autograd.all_gather(inp)
        (gradient,) = torch.autograd.grad((gathered * (comm.rank + 1)).sum(), inp)
        torch.testing.assert_close(gradient, torch.full_like(inp, 3.0))
        matrix = comm.exchange_counts([1, 3] if comm.rank == 0 else [2, 2])
        received = [row[comm.rank] for row in matrix]
        rows = comm.autograd.all_to_allv(inp, received, matrix[comm.rank], matrix=matrix)
        assert rows.shape == (sum(received), 8)
        comm.close()

    on_ranks("nccl", RANKS, rank)
