"""Communicators over NCCL without a GPU: buffers, graphs, streams, over what fake_cuda.py and fake_nccl.py pretend."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("cuda.bindings")

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from commbench.communicators.communicator import Communicator
from commbench.communicators.explain import CommunicatorInfo
from commbench.communicators.select import Chooser
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.profile import Choice
from commbench.profile.scope import Here
from commbench.profile.table import Table
from tests.conftest import PATIENCE_S, REPOSITORY
from tests.support import fake_cuda, fake_nccl, profiles
from tests.support.ranks import forked

pytestmark = pytest.mark.timeout(60)
RANKS = 2
HOST = REPOSITORY / "tests/kernels/host"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels for two ranks."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("kernels") / "two.so"
    flags = ["-std=c++20", "-O1", "-pthread", "-shared", "-fPIC", f"-I{HOST}", str(HOST / "launch.cpp")]
    process = subprocess.Popen([compiler, *flags, f"-DRANKS={RANKS}", "-o", str(path)])
    fake_cuda.before_fork()
    assert not process.wait(timeout=PATIENCE_S)
    return path


@pytest.fixture
def each(library: Path) -> Callable[..., None]:
    """function(joined transport) on forked ranks, each with a GPU that is pretended."""

    def run(function: Callable[[Any], None], *, reach: bool = True, limits: dict[int, int] | None = None) -> None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as shared:

            def body(rank: int) -> None:
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
                limit = (limits or {}).get(rank, 1 << 62)
                fake_nccl.install(Path(shared), rank, RANKS, {RANKS: library}, reach=reach, limit=limit)
                store = FileStore(f"{shared}/store", RANKS)
                dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
                from commbench.transports.existing_nccl_group import JoinedNccl

                world = dist.group.WORLD
                assert world is not None
                fake_cuda.Now.stream = fake_cuda.Stream()  # the default one cannot be captured
                function(JoinedNccl(world, torch.device("cpu", rank), one_host=True))

            codes = forked(RANKS, body)
        assert not any(codes), codes

    return run


def by(transport: Any, *choices: Choice) -> Communicator:
    layout = Layout(1, RANKS)
    table = Table(profiles.profile(*choices, transport="nccl"), "s")
    here = Here(transport="nccl", nodes=1, ranks_per_node=RANKS)
    return Communicator(transport, layout, Chooser("nccl", layout, table), CommunicatorInfo(here=here, layout=layout))


def brought(rank: int, elements: int, salt: int) -> torch.Tensor:
    return torch.arange(elements, dtype=torch.float32) + 1000 * rank + 100_000 * salt


def check(comm: Communicator, out: torch.Tensor, inp: torch.Tensor, *, graph: Any = None, **asked: Any) -> None:
    """Three calls, or replays."""
    half = inp.numel() // 2
    for salt in range(3):
        inp.copy_(brought(comm.rank, 2 * half, salt).view(inp.shape))
        out.zero_()
        dist.barrier()  # nobody writes into an output that is still being cleared
        if graph is not None:
            graph.replay()
        elif (work := comm.all_to_all(out, inp, **asked)) is not None:
            work.wait()
        parts = [brought(src, 2 * half, salt)[comm.rank * half :][:half] for src in range(2)]
        assert torch.equal(out, torch.cat(parts)), salt


def captured(comm: Communicator, out: torch.Tensor, inp: torch.Tensor) -> Any:
    graph = fake_cuda.Graph()
    with fake_cuda.capture(graph, fake_cuda.Now.stream, "thread_local"):
        comm.all_to_all(out, inp)
    return graph


def test_each_kind_of_memory_gets_what_was_tuned_for_it(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        store = profiles.choice(
            "all_to_all", "symm_store", 0, 4095, buffers="symmetric", on_plain=profiles.config("all_to_all", "pairwise")
        )
        comm = by(
            transport,
            store,
            profiles.choice("all_to_all", "direct", 4096, 65535, buffers="registered"),
            profiles.choice("all_to_all", "direct", 65536, buffers="symmetric"),
        )
        for elements, memory in ((256, "peer"), (2048, "registered"), (32768, "symmetric")):
            out, inp = comm.empty(elements), comm.empty((2, elements // 2))
            for asked in ({}, {"async_op": True}):
                check(comm, out, inp, **asked)
            assert comm._calls._memory(out) == comm._calls._memory(inp) == memory
            check(comm, out, torch.empty(elements))  # only one of both
            check(comm, torch.empty(elements), torch.empty(elements))
        check(comm, comm.empty(512)[128:384], comm.empty(256))  # a part of a buffer is as good
        told = comm.explain()
        for line in (
            "all_to_all, 1 KiB, peer buffers: symm_store",
            "all_to_all, 1 KiB: pairwise window=1",
            "all_to_all, 8 KiB, registered buffers: direct",
            "direct on registered buffers was tuned, and these are not from empty(); the default",
            "all_to_all, 128 KiB, asynchronous, symmetric buffers: direct",
        ):
            assert line in told, told
        pools = len(transport.windows._pools)
        windows = transport.windows
        comm.close()
        assert pools == 4 and not windows._pools and not transport.memory._known

    each(rank)


def test_graphs_take_their_own_choices_and_what_they_hold_stays(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        from commbench.communicators import prepared

        prepared.KEPT = 2
        comm = by(
            transport,
            profiles.choice("all_to_all", "bruck"),
            profiles.choice("all_to_all", "symm_copy_engine", captured=True, buffers="symmetric",
                            on_plain=profiles.config("all_to_all", "bruck")),
        )  # fmt: skip
        out, inp = comm.empty(64, captured=True), comm.empty(64, captured=True)
        check(comm, out, inp)  # what has been seen outside of graphs does not count in them
        with pytest.raises(UsageError, match="256 B, peer buffers: not prepared before the capture") as caught:
            captured(comm, out, inp)
        assert "comm.prepare('all_to_all', ...)" in caught.value.hint
        comm.prepare("all_to_all", out, inp)
        graph = captured(comm, out, inp)
        check(comm, out, inp, graph=graph)
        plain = torch.empty(32), torch.empty(32)
        comm.prepare("all_to_all", *plain)
        other = captured(comm, *plain)
        for elements in range(2, 40, 2):  # more kinds of calls than are kept
            check(comm, torch.empty(elements), torch.empty(elements))
        check(comm, out, inp, graph=graph)
        check(comm, *plain, graph=other)
        told = comm.explain()
        assert "all_to_all in a graph, 256 B, peer buffers: symm_copy_engine memops=1 own_ctas=0" in told, told
        assert "all_to_all in a graph, 128 B: bruck" in told
        assert len([kept for kept in comm._calls._cache._even.values() if kept.captured]) == 2
        for one in (graph, other):
            one.reset()
        comm.close()

    each(rank)


def test_nccl_lets_go_of_what_graphs_held_before_its_memory_is_freed(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_all", "direct", buffers="registered"))
        out, inp = comm.empty(64), comm.empty(64)
        graph = captured(comm, out, inp)  # the library's own call needs no preparation
        check(comm, out, inp, graph=graph)
        graph.reset()
        comm.close()

    each(rank)


def test_calls_on_two_streams_do_not_share_scratch_at_the_same_time(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_all", "bruck"))
        waits: list[tuple[int, int]] = []
        real = fake_cuda.Stream.wait_stream

        def wait_stream(self: Any, other: Any) -> None:
            waits.append((self.cuda_stream, other.cuda_stream))
            real(self, other)

        fake_cuda.Stream.wait_stream = wait_stream  # type: ignore[method-assign]
        out, inp = torch.empty(8), torch.empty(8)
        check(comm, out, inp)
        first, second = fake_cuda.Now.stream, fake_cuda.Stream()
        assert not waits
        with fake_cuda.use_stream(second):
            check(comm, out, inp)
        assert waits == [(second.cuda_stream, first.cuda_stream)]
        comm.close()

    each(rank)


def test_scratch_is_free_when_the_stream_that_waited_says_so(each: Callable[..., None]) -> None:
    """A call is started on one stream and waited for on another: only that one knows when it is over."""

    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_all", "bruck"))
        out, inp = torch.empty(8), torch.empty(8)
        check(comm, out, inp, async_op=True)
        waits: list[tuple[int, int]] = []
        real = fake_cuda.Stream.wait_event

        def wait_event(self: Any, event: Any) -> None:
            waits.append((self.cuda_stream, event.stream.cuda_stream))
            real(self, event)

        fake_cuda.Stream.wait_event = wait_event  # type: ignore[method-assign]
        first, second = fake_cuda.Now.stream, fake_cuda.Stream()
        check(comm, out, inp, async_op=True)
        assert not waits  # on the same stream there is nothing to wait for
        work = comm.all_to_all(out, inp, async_op=True)
        assert work is not None
        with fake_cuda.use_stream(second):
            work.wait()
        check(comm, out, inp, async_op=True)
        assert waits == [(first.cuda_stream, second.cuda_stream)]
        comm.close()

    each(rank)


def test_asynchronous_calls_are_prepared_ahead_too(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_all", "bruck"))
        out, inp = torch.empty(8), torch.empty(8)
        comm.prepare("all_to_all", out, inp, async_op=True)
        assert "all_to_all, 32 B, asynchronous: bruck" in comm.explain()
        kept = len(comm._calls._cache._even)
        check(comm, out, inp, async_op=True)
        assert len(comm._calls._cache._even) == kept
        comm.close()

    each(rank)


def test_uneven_exchanges_by_stores_are_prepared_ahead(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_allv", "symm_store", buffers="symmetric"))
        me, matrix = comm.rank, [[3, 1], [2, 4]]
        received, sent = [row[me] for row in matrix], matrix[me]
        whole = comm.empty((8, 4), collective="all_to_allv"), comm.empty((8, 4), collective="all_to_allv")
        out, inp = whole[0][: sum(received)], whole[1][: sum(sent)]

        def run() -> None:
            for salt in range(2):
                inp.copy_(brought(me, inp.numel(), salt).view(inp.shape))
                out.zero_()
                dist.barrier()
                comm.all_to_allv(out, inp, received, sent, matrix=matrix)
                parts = []
                for src in range(2):
                    start = sum(matrix[src][:me])
                    of = brought(src, 4 * sum(matrix[src]), salt).view(-1, 4)
                    parts.append(of[start : start + matrix[src][me]])
                assert torch.equal(out, torch.cat(parts))

        run()
        assert "symm_store ctas=0 packet_bytes=262144 on symmetric buffers was tuned, not prepared ahead for these" in (
            comm.explain()
        )
        comm.prepare("all_to_allv", out, inp, received, sent, matrix)
        run()
        assert "peer buffers: symm_store" in comm.explain()
        assert len(comm._calls._cache._uneven) == 1
        comm.close()

    each(rank)


def test_without_peer_memory_buffers_are_plain(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(transport, profiles.choice("all_to_all", "symm_store", buffers="symmetric"))
        out, inp = comm.empty(64), comm.empty(64)
        assert not comm._calls.owned
        check(comm, out, inp)
        assert "symmetric buffers are plain here: these GPUs do not reach" in comm.explain()
        comm.close()

    each(rank, reach=False)


def test_memory_that_one_rank_lacks(each: Callable[..., None]) -> None:
    def rank(transport: Any) -> None:
        comm = by(
            transport,
            profiles.choice("all_to_all", "direct", 0, 1 << 20, buffers="symmetric"),
            profiles.choice("all_to_all", "symm_store", (1 << 20) + 1, buffers="symmetric"),
        )
        for nbytes in (1 << 20, 2 << 20):
            with pytest.raises(MemoryError, match="of symmetric memory"):
                comm.empty(nbytes, torch.uint8)
        check(comm, comm.empty(64), comm.empty(64))
        comm.close()

    each(rank, limits={1: 300_000})
