"""Communicators on forked ranks over gloo: which way is taken on which buffers, and what is kept of both."""

from __future__ import annotations

import functools
import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist

import commbench
from commbench.communicators import create, prepared
from commbench.communicators.loaded import LoadedProfile
from commbench.errors import CommbenchError, UsageError
from commbench.profile import AlgorithmConfig, Profile, file
from commbench.profile.scope import OutOfScope
from tests.conftest import PATIENCE_S
from tests.gloo.calls import by, check_all_to_all, check_all_to_allv, nodes_of, numbers, raises
from tests.support import profiles
from tests.support.ranks import on_gloo


def test_ranks_that_are_not_in_blocks_on_their_hosts_count_as_nodes() -> None:
    def rank(transport: Any) -> None:
        create.host_id = lambda: f"host-{dist.get_rank() % 2}"  # type: ignore[assignment]
        comm = by(profiles.choice("all_to_all", "2d_intra_first"))
        check_all_to_all(comm, 4)
        assert (comm.layout.nodes, comm.layout.ranks_per_node) == (4, 1)
        assert "note: the 4 ranks are on 2 hosts, not in consecutive blocks" in comm.explain()
        assert "2d_intra_first cannot do this: layout 4x1: two levels need" in comm.explain()
        narrow = LoadedProfile(profiles.profile(profiles.choice("all_to_all", "direct"), nodes=2, ranks_per_node=2))
        raises(OutOfScope, narrow.communicator, "nodes: the profile is for 2, here is 4", "not in consecutive blocks")

    on_gloo(4, rank)
    assert create.layout_of(["a", "a", "b"])[1].startswith("the 3 ranks are on 2 hosts with 1, 2 ranks each")


def test_buffers_from_elsewhere_get_the_best_choice_for_them() -> None:
    """gloo has plain buffers only, so the transport's record is stretched: what is asked of it counts."""

    def rank(transport: Any) -> None:
        from commbench.transports import TABLE

        TABLE["gloo"] = replace(TABLE["gloo"], buffers=("plain", "registered"))
        taken = profiles.choice(
            "all_to_all", "bruck", buffers="registered", on_plain=profiles.config("all_to_all", "pairwise")
        )
        comm = by(taken, profiles.choice("all_gather", "direct", buffers="registered"))
        check_all_to_all(comm, 4)
        told = comm.explain()
        assert "all_to_all, 32 B: pairwise window=1" in told
        assert (
            "why: bruck on registered buffers was tuned, and these are not from empty(); the profile's choice" in told
        )
        out, inp = comm.empty((2, 4)), comm.empty(8)
        assert (out.shape, inp.dtype, len(comm._calls.owned)) == ((2, 4), torch.float32, 2)
        for salt in range(3):
            inp.copy_(numbers(comm.rank, 8, salt=salt))
            comm.all_to_all(out, inp)
            want = torch.cat([numbers(src, 8, salt=salt).view(2, 4)[comm.rank] for src in range(2)])
            assert torch.equal(out.view(-1), want)
        assert "all_to_all, 32 B, registered buffers: bruck" in comm.explain()
        comm.all_to_all(out[1], inp[:4])  # parts of them are the same memory
        comm.all_to_all(torch.empty(8), inp)  # one of both is not enough
        assert "all_to_all, 16 B, registered buffers: bruck" in comm.explain()
        comm.all_gather(torch.empty(16), inp)
        assert "direct on registered buffers was tuned, and these are not from empty(); the default" in comm.explain()
        assert comm.empty(3, torch.int8, collective="broadcast").dtype is torch.int8
        assert len(comm._calls.owned) == 2
        comm._transport.unsupported = lambda buffers, *, one_sided: "no allocator"
        comm.empty(8)
        assert "registered buffers are plain here: no allocator" in comm.explain()
        comm.close()

    on_gloo(2, rank)


def test_buffers_are_made_for_the_arguments_that_calls_have() -> None:
    """Tuning writes down the arguments of a collective, those that nobody typed too."""

    def rank(transport: Any) -> None:
        from commbench.transports import TABLE

        nodes_of(2)
        TABLE["gloo"] = replace(TABLE["gloo"], buffers=("plain", "registered"))
        tp = {"tp": 2, "tp_input": "replicated"}
        comm = by(
            profiles.choice("all_reduce", "direct", buffers="registered", arguments={"op": "sum"}),
            profiles.choice("broadcast", "direct", buffers="registered", arguments={"root": 0}),
            profiles.choice("tp_all_to_all", "duplicated", buffers="registered", arguments=tp),
        )
        total = comm.empty(4, collective="all_reduce").fill_(comm.rank)
        comm.all_reduce(total)
        assert total.tolist() == [6.0] * 4
        assert "all_reduce op=sum, 16 B, in place, registered buffers: direct" in comm.explain()
        assert "the default" not in comm.explain()
        for collective, asked in (("broadcast", {}), ("tp_all_to_all", {}), ("tp_all_to_all", {"tp": 2})):
            owned = len(comm._calls.owned)
            comm.empty(64, collective=collective, **asked)
            assert len(comm._calls.owned) == owned + 1, (collective, asked)
        comm.empty(4, collective="all_reduce", op="max")
        assert len(comm._calls.owned) == owned + 1  # of which the profile knows nothing
        raises(
            UsageError, lambda: comm.empty(4, collective="all_reduce", mean=1), "argument of all_reduce 'mean'", "op"
        )
        raises(UsageError, lambda: comm.empty(64, collective="tp_all_to_all", tp=3), "tp=3", "do not divide")

    on_gloo(4, rank)


def test_one_sided_ways_fall_back_where_no_rank_reaches_another() -> None:
    def rank(transport: Any) -> None:
        symmetric = profiles.choice("all_to_all", "symm_store", buffers="symmetric")
        comm = LoadedProfile(profiles.profile(symmetric)).communicator()
        check_all_to_all(comm, 4)
        assert "the default" in comm.explain()
        comm._chooser._table._curves.clear()  # type: ignore[union-attr]
        assert not comm._chooser.captures("all_to_all")

    on_gloo(2, rank)


def test_prepare_does_all_but_the_call() -> None:
    def rank(transport: Any) -> None:
        nodes_of(2)
        comm = by(profiles.choice("all_to_all", "2d_intra_first"), profiles.choice("all_to_allv", "2d_intra_first"))
        out, inp = torch.full((16,), -1.0), torch.zeros(16)
        comm.prepare("all_to_all", out, inp)
        assert (out == -1).all() and "all_to_all, 64 B: 2d_intra_first" in comm.explain()
        groups = len(dist.distributed_c10d._world.pg_names)
        check_all_to_all(comm, 4)
        matrix = [[1] * 4 for _ in range(4)]
        comm.prepare("all_to_allv", out.view(4, 4), inp.view(4, 4), received=[1] * 4, sent=[1] * 4, matrix=matrix)
        assert (out == -1).all()
        check_all_to_allv(comm, matrix, matrix, 0)
        assert len(dist.distributed_c10d._world.pg_names) == groups

    on_gloo(4, rank)


def test_profiles_are_read_and_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    made = profiles.profile(profiles.choice("all_to_all", "direct"))
    file.save(made, path)
    loaded = commbench.load_profile(str(path))
    assert isinstance(loaded.profile, Profile) and loaded.profile == made and loaded.name == str(path)
    raises(CommbenchError, lambda: commbench.load_profile(tmp_path / "none.json"), "none.json")
    assert profiles.config("all_to_all", "pairwise") == AlgorithmConfig(algorithm="pairwise", params={"window": 1})


def gone(address: int) -> bool:
    """Whether no tensor is there any more. gloo's threads let go of a call's tensors shortly after it is done."""
    deadline = time.monotonic() + PATIENCE_S
    while any(type(held) is torch.Tensor and held.data_ptr() == address for held in gc.get_objects()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_buffers_are_seen_by_what_they_are_and_die_when_the_program_drops_them() -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        calls = comm._calls
        out, inp = torch.empty(8), numbers(comm.rank, 8)
        for _ in range(3):
            comm.all_to_all(out, inp)
        assert len(calls.seen) == 1
        kept = torch.empty(16)
        want = torch.cat([numbers(src, 8).view(2, 4)[comm.rank] for src in range(2)])
        assert torch.equal(out, want)
        # The same object, elsewhere, of another length, of other strides.
        out.data = kept[:8]
        comm.all_to_all(out, inp)
        assert torch.equal(kept[:8], want)
        inp.resize_(4)
        raises(UsageError, lambda: comm.all_to_all(out, inp), "8 elements", "4")
        square = [torch.empty(2, 4), numbers(comm.rank, 2, 4)]
        for _ in range(3):
            comm.all_to_all(*square)
        square[1].t_()
        raises(UsageError, functools.partial(comm.all_to_all, *square), "not contiguous")
        square[1].t_()
        comm.all_to_all(*square)
        comm.all_to_all(*square)
        before, at = len(calls.seen), square[0].data_ptr()
        square.clear()
        gc.collect()
        assert len(calls.seen) == before - 1
        assert gone(at)  # nothing of ours keeps its memory
        for number in range(200):  # ids and addresses come again
            check_all_to_all(comm, 1 + number % 3, calls=3)
        assert len(calls.seen) <= 2
        comm.close()
        assert not calls.seen

    on_gloo(2, rank)


def test_what_a_seen_tensor_has_become_counts() -> None:
    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        seen = comm._calls.seen
        memory = torch.empty(16), torch.empty(16)
        out, inp = memory[0][:8], numbers(comm.rank, 8)
        for _ in range(3):
            comm.all_to_all(out, inp)
        assert len(seen) == 1
        # Of the same length at the same address, and twice as many bytes.
        double = numbers(comm.rank, 8, dtype=torch.float64)
        memory[1].view(torch.float64).copy_(double)
        for _ in range(2):
            inp.data = memory[1][:8]
            comm.all_to_all(out, inp)
        out.data, inp.data = memory[0].view(torch.float64), memory[1].view(torch.float64)
        comm.all_to_all(out, inp)
        want = torch.cat([numbers(src, 8, dtype=torch.float64).view(2, 4)[comm.rank] for src in range(2)])
        assert torch.equal(out, want)
        # A gradient that would be lost, as a fresh tensor's would.
        out, inp = torch.empty(8), torch.empty(8)
        for _ in range(3):
            comm.all_to_all(out, inp)
        assert len(seen) == 1
        inp.copy_(torch.ones(8, requires_grad=True))
        raises(UsageError, lambda: comm.all_to_all(out, inp), "inp requires a gradient", "comm.autograd.all_to_all")
        # Memory that the tensors have no more.
        assert not seen

    on_gloo(2, rank)


def test_what_is_prepared_ahead_is_not_the_first_to_be_forgotten() -> None:
    def rank(transport: Any) -> None:
        nodes_of(1)
        prepared.KEPT = 2
        comm = by(profiles.choice("all_to_all", "bruck"))
        kept = comm._calls._cache._even
        check_all_to_all(comm, 1, calls=1)
        check_all_to_all(comm, 2, calls=1)
        comm.prepare("all_to_all", torch.empty(6), torch.empty(6))
        check_all_to_all(comm, 4, calls=1)
        comm.prepare("all_to_all", torch.empty(0), torch.empty(0))  # of which a call would need nothing
        assert [made.ask.size_bytes for made in kept.values()] == [24, 32]

    on_gloo(2, rank)


def test_the_librarys_calls_are_kept_once() -> None:
    """An uneven exchange by stores that was not prepared ahead asks for the library's call each time."""

    def rank(transport: Any) -> None:
        comm = commbench.communicator()
        cache, calls = comm._calls._cache, comm._calls
        matrix = [[1, 2], [3, 4]]
        check_all_to_allv(comm, matrix, matrix, 0)
        ((ask, made),) = cache._library.items()
        assert cache.library(made.ask, made.chosen) is made and len(cache._library) == 1
        assert calls.explained.keys() == {ask}

    on_gloo(2, rank)


def test_what_is_prepared_is_forgotten_alike_on_all_ranks() -> None:
    """Ranks whose tensors live differently long take different ways through the caches, and must not part."""

    def rank(transport: Any) -> None:
        nodes_of(2)
        prepared.KEPT, prepared.KEPT_UNEVEN = 3, 2
        comm = by(profiles.choice("all_to_all", "2d_intra_first"), profiles.choice("all_to_allv", "pairwise"))
        buffers = {rows: (torch.empty(4 * rows), torch.empty(4 * rows)) for rows in range(1, 8)}
        order = [1, 2, 3, 1, 4, 1, 5, 2, 1, 6, 3, 7, 1, 1, 2, 5] * 3
        closed = 0
        real = prepared.Prepared.close

        def close(self: Any) -> None:
            nonlocal closed
            closed += 1
            real(self)

        prepared.Prepared.close = close  # type: ignore[method-assign]
        for step, rows in enumerate(order):
            out, inp = buffers[rows] if (comm.rank + step) % 3 else (torch.empty(4 * rows), torch.empty(4 * rows))
            inp.copy_(numbers(comm.rank, 4 * rows, salt=step))
            comm.all_to_all(out, inp)
            parts = [numbers(src, 4 * rows, salt=step)[comm.rank * rows :][:rows] for src in range(4)]
            assert torch.equal(out, torch.cat(parts)), (step, rows)
            matrix = [[(i + j + step) % 3 for j in range(4)] for i in range(4)]
            check_all_to_allv(comm, matrix, matrix, step)
        assert {*transport.all_gather([float(closed)])[:, 0].tolist()} == {closed} and closed > 20

    on_gloo(4, rank)
