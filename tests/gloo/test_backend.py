"""Wrapped process groups over gloo: what torch's own functions do through them, and what an observer hears."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed import distributed_c10d

import commbench
import commbench.backend
from commbench import algorithms
from commbench.algorithms.direct import DirectAllGather, DirectAllReduce, DirectBroadcast, DirectReduceScatter
from commbench.backend import observer
from commbench.backend.group import WrappedGroup
from commbench.backend.install import install
from commbench.backend.observer import GroupInfo, ObservedCall, ObservedWork
from commbench.backend.source import ProfileSource
from commbench.backend.start import of_environment
from commbench.profile import file
from commbench.transports.plain_groups import plain_groups
from moe_ref import FFN, DistributedMoE, Gate, GateConfig
from tests.support import profiles, public_calls
from tests.support.ranks import forked


class Waits(ObservedWork):
    """Counts the waits of a program."""

    waited = 0

    def wait(self, *given: Any, **named: Any) -> bool:
        Waits.waited += 1
        return bool(self.inner.wait(*given, **named))


class Ear:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.groups: list[GroupInfo] = []
        self.calls: list[ObservedCall] = []
        self.errors: list[BaseException] = []

    def group_created(self, group: GroupInfo) -> None:
        self.groups.append(group)

    def begin(self, call: ObservedCall) -> int:
        self.calls.append(call)
        return len(self.calls)

    def end(self, token: int, work: dist.Work) -> dist.Work:
        return Waits(work)

    def failed(self, token: int, error: BaseException) -> None:
        self.errors.append(error)


def nothing() -> None:
    """No profile."""


def meet(rank: int, size: int, folder: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)


def test_an_observer_hears_of_each_call_once(tmp_path: Path) -> None:
    def rank(me: int) -> None:
        install(nothing)
        observer.current = ear = Ear()
        meet(me, 2, tmp_path)
        world = dist.group.WORLD
        assert isinstance(world, WrappedGroup) and dist.get_backend() == "gloo"
        inp, out = torch.arange(4.0) + 10 * me, torch.empty(4)
        dist.all_to_all_single(out, inp)
        assert out.tolist() == [2 * me, 2 * me + 1, 2 * me + 10, 2 * me + 11]
        counts = [1 + me, 1 + me]
        uneven = torch.empty(3), torch.ones(2 * (1 + me), dtype=torch.float64).float(), [1, 2], counts
        dist.all_to_all_single(*uneven, async_op=True).wait()
        group = dist.new_group([1, 0])
        dist.broadcast(out, 1, group=group)
        with plain_groups():
            assert type(dist.new_group([0, 1])) is dist.ProcessGroup
        called = [(call.collective, call.nbytes, call.sent, call.received, call.asynchronous) for call in ear.calls]
        sent = (4 + 4 * me, 4 + 4 * me)
        assert called == [
            ("all_to_all", 16, None, None, False),
            ("all_to_allv", max(12, 8 * (1 + me)), sent, (4, 8), True),
            ("broadcast", 16, None, None, False),
        ]
        assert ear.calls[2].root == 1 and {call.device for call in ear.calls} == {"cpu"} and Waits.waited == 3
        sparse = torch.eye(3).to_sparse()
        dist.all_reduce(sparse)
        assert sparse.to_dense()[0, 0] == 2 and ear.calls.pop().nbytes == 36
        assert [(heard.name, heard.ranks, heard.rank) for heard in ear.groups] == [("0", (0, 1), me), ("1", (0, 1), me)]
        try:
            dist.all_to_all_single(torch.empty(5), torch.empty(5))
        except (RuntimeError, ValueError):
            assert len(ear.errors) == 1
        observer.drop(ValueError("no more"))
        dist.all_reduce(out)
        assert len(ear.calls) == 4
        dist.destroy_process_group()
        assert not distributed_c10d._world.pg_map

    assert forked(2, rank) == [0, 0]


def test_thousands_of_calls_do_not_hang(tmp_path: Path) -> None:
    """Calls that hold the interpreter's lock, as torch's trampoline does, meet gloo's threads after some hundred."""

    def rank(me: int) -> None:
        install(nothing)
        meet(me, 2, tmp_path)
        inp, out, world = torch.zeros(2), torch.zeros(2), dist.group.WORLD
        assert world is not None
        for _ in range(2000):
            world.alltoall_base(out, inp, [], []).wait()
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]


@pytest.mark.parametrize("size", [2, 3])
def test_calls_by_a_profile_give_the_same_bytes(size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    worth = replace(profiles.EVIDENCE, default_us=1e9)
    # Messages of pairwise carry the counts; counts_first needs all of them first. Those of 3 ranks are 72 B, for which
    # the choice is torch's own call; the smallest exchange in floats is 84 B, and in bytes 21 B.
    uneven_by, least = {2: ("pairwise", 0), 3: ("counts_first", 80)}[size]
    choices = [profiles.choice("all_to_all", "pairwise")]
    choices += [profiles.choice("all_to_allv", "direct", 0, least - 1)] if least else []
    choices += [profiles.choice("all_to_allv", uneven_by, least, evidence=[worth])]
    file.save(profiles.profile(*choices, profiles.choice("all_gather", "direct")), path)

    def rank(me: int) -> None:
        source = ProfileSource(path)
        install(lambda: source)
        meet(me, size, tmp_path)
        world = dist.group.WORLD
        assert isinstance(world, WrappedGroup)
        inner = world.library_group()
        for asynchronous in (False, True):
            for dtype in (torch.float32, torch.int8, torch.complex64):
                inp = (torch.arange(6.0 * size) + 50 * me).to(dtype).view(-1, 3)
                found = []
                for group in (world, inner):
                    even, gathered = torch.zeros_like(inp), inp.new_zeros((size * inp.shape[0], 3))
                    sent, received = [i % 2 + me for i in range(size)], [me % 2 + i for i in range(size)]
                    rows, uneven = inp.repeat(size, 1)[: sum(sent)], inp.new_zeros((sum(received), 3))
                    # A receive of the program's with the tag of everybody: no message of an algorithm may end in it.
                    token = torch.full((1,), -1.0)
                    got = dist.irecv(token, group_src=(me - 1) % size, group=group)
                    works = [
                        dist.all_to_all_single(even, inp, group=group, async_op=asynchronous),
                        dist.all_to_all_single(uneven, rows, received, sent, group=group, async_op=asynchronous),
                        dist.all_gather_into_tensor(gathered, inp, group=group, async_op=asynchronous),
                    ]
                    out = dist.isend(torch.full((1,), float(me)), group_dst=(me + 1) % size, group=group)
                    for work in (*works, got, out):
                        assert work is None or work.wait() is not False
                    assert token.item() == (me - 1) % size
                    found.append((even, uneven, gathered))
                for mine, library in zip(*found, strict=True):
                    assert torch.equal(mine, library) and library.abs().sum() > 0
        told = commbench.backend.explain()
        assert "all_to_all, " in told and "pairwise window=1\n" in told
        if least:
            assert "uneven exchanges: 6 of 6 calls exchanged their counts first, which takes" in told
            assert "us by direct and saves" in told and "counts_first\n" in told
        else:
            by = "6 of 6 calls by pairwise window=1 (6), whose first messages carry the counts"
            assert f"uneven exchanges: {by}" in told
        # Nothing is chosen twice, and torch's tables are as they were.
        comm = commbench.communicator()
        assert "profile: none" in comm.explain()
        comm.close()
        assert len(distributed_c10d._world.pg_names) == 1
        dist.destroy_process_group()
        assert not distributed_c10d._world.pg_map and not distributed_c10d._world.pg_group_ranks

    assert forked(size, rank) == [0] * size
    assert capfd.readouterr().err == ""


def test_a_profile_that_cannot_hold_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    elsewhere, torn = tmp_path / "p.json", tmp_path / "torn.json"
    file.save(
        profiles.profile(profiles.choice("all_to_all", "pairwise"), ranks_per_node=4, versions={"torch": "1.0"}),
        elsewhere,
    )
    torn.write_text("{")

    def rank(me: int) -> None:
        sources = {
            "torn": ProfileSource(torn if me else elsewhere),
            "elsewhere": ProfileSource(elsewhere),
            "world": None,
        }
        install(lambda: sources.popitem()[1])
        meet(me, 2, tmp_path)
        inp, out = torch.arange(4.0) + 10 * me, torch.empty(4)
        for _ in range(2):
            group = dist.new_group([0, 1])
            for _ in range(3):
                out.zero_()
                dist.all_to_all_single(out, inp, group=group)
                assert out.tolist() == [2 * me, 2 * me + 1, 2 * me + 10, 2 * me + 11]
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]
    first, second = capfd.readouterr().err.splitlines()
    assert "torch makes these calls itself" in first and "ranks per node: the profile is for 4, here is 2" in first
    assert "torch version: the profile is for 1.0" in first
    assert "(tune here: commbench tune quick transport=gloo nodes=1 ranks_per_node=2 --out here.json)" in first
    assert "rank 1: " in second and "torn.json" in second


def test_a_group_that_is_too_small_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All others still go by the profile."""
    made_for = profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=1, ranks_per_node=2)
    file.save(made_for, tmp_path / "p.json")

    def rank(me: int) -> None:
        source = ProfileSource(tmp_path / "p.json")
        install(lambda: source)
        meet(me, 2, tmp_path)
        inp, out = torch.arange(4.0) + 10 * me, torch.empty(4)
        for _ in range(2):
            group = dist.new_group([0])
            if me == 0:
                dist.all_to_all_single(out, inp, group=group)
                assert out.tolist() == inp.tolist()
                assert "ranks per node: the profile is for 2, here is 1" in commbench.backend.explain(group)
        dist.all_gather_into_tensor(out, inp[:2])
        assert commbench.backend.explain().endswith("no call of this group has gone by the profile")
        dist.all_to_all_single(out, inp)
        told = commbench.backend.explain()
        assert "pairwise window=1" in told and "no call" not in told
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]
    (said,) = capfd.readouterr().err.splitlines()
    assert "torch makes these calls itself" in said and "ranks per node: the profile is for 2, here is 1" in said


@pytest.mark.parametrize("size", [3])
def test_the_public_api_is_the_same_to_the_bit(size: int, tmp_path: Path) -> None:
    """Every function on tensors, in the world and in sub-groups; tests/bench/backend.py has the rest, on 2 to 4."""
    path = tmp_path / "p.json"
    file.save(
        profiles.profile(profiles.choice("all_to_all", "pairwise"), profiles.choice("all_to_allv", "pairwise")), path
    )

    def ran(wrapped: bool) -> list[str]:
        folder = tmp_path / str(wrapped)
        folder.mkdir()

        def rank(me: int) -> None:
            if wrapped:
                source = ProfileSource(path)
                install(lambda: source)
            meet(me, size, folder)
            found = public_calls.everything(folder, compiled=False)
            if wrapped:
                assert "pairwise" in commbench.backend.explain()
            (folder / f"{me}.json").write_text(json.dumps(found, indent=1))
            dist.barrier()
            dist.destroy_process_group()

        assert forked(size, rank) == [0] * size
        return [(folder / f"{me}.json").read_text() for me in range(size)]

    wrapped, alone = ran(True), ran(False)
    assert wrapped == alone and all(len(json.loads(text)) > 30 for text in alone)


def test_a_backend_that_is_asked_for_twice_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), tmp_path / "p.json")
    monkeypatch.setenv("COMMBENCH_PROFILE", str(tmp_path / "p.json"))

    def rank(me: int) -> None:
        install(of_environment)
        install(of_environment)
        dist.init_process_group("commbench", init_method=f"file://{tmp_path}/store", rank=me, world_size=2)
        world = dist.group.WORLD
        assert isinstance(world, WrappedGroup) and type(world.inner) is dist.ProcessGroup
        assert dist.get_backend() == "commbench"
        out, inp = torch.empty(2), torch.tensor([0.0, 1.0]) + 10 * me
        dist.all_to_all_single(out, inp)
        assert out.tolist() == [me, 10 + me] and "pairwise" in commbench.backend.explain()
        comm = commbench.communicator()
        comm.all_to_all(out, inp)
        comm.close()
        plain = dist.new_group([0, 1], backend="gloo")
        assert isinstance(plain, WrappedGroup) and dist.get_backend(plain) == "gloo"
        dist.barrier()  # the other rank may be connecting still
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]


def test_a_rank_that_is_killed_ends_the_calls_of_the_others(tmp_path: Path) -> None:
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), tmp_path / "p.json")

    def rank(me: int) -> None:
        source = ProfileSource(tmp_path / "p.json")
        install(lambda: source)
        meet(me, 3, tmp_path)
        out, inp = torch.zeros(3), torch.arange(3.0)
        dist.all_to_all_single(out, inp)
        if me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        raised = []
        for asynchronous in (True, False):
            try:
                work = dist.all_to_all_single(out, inp, async_op=asynchronous)
                if work is not None:
                    work.wait()
            except RuntimeError as error:
                raised.append(str(error))
        assert len(raised) == 2, raised

    assert forked(3, rank) == [0, -signal.SIGKILL, 0]


def test_sums_go_by_the_profile_where_they_shall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one of each, planted: broadcast and all_gather always go by it, sums where they shall, within the bound.

    (n - 1) u times the sum of absolute values, as for any order of summands.
    """
    moves, sums = (DirectAllGather, DirectBroadcast), (DirectAllReduce, DirectReduceScatter)
    for kind in (*moves, *sums):
        planted = type("Planted", (kind,), {"name": "planted"})()
        monkeypatch.setitem(algorithms.TABLE, (kind.collective, "planted"), planted)
    choices = [profiles.choice(kind.collective, "planted") for kind in (*moves, *sums)]
    file.save(profiles.profile(*choices), tmp_path / "p.json")

    def rank(me: int) -> None:
        sources = [ProfileSource(tmp_path / "p.json", reductions=reductions) for reductions in (True, False)]
        install(lambda: sources.pop())
        meet(me, 3, tmp_path)
        parts = [torch.randn(3, 100, generator=torch.Generator().manual_seed(number)) for number in range(3)]
        exact, room = torch.stack(parts).double().sum(0), torch.stack(parts).abs().double().sum(0)
        bound = 2 * (torch.finfo(torch.float32).eps / 2) * room
        for group, by_profile in ((dist.group.WORLD, moves), (dist.new_group([0, 1, 2]), (*moves, *sums))):
            for asynchronous in (False, True):
                total, part = parts[me].clone(), torch.empty(1, 100)
                whole, sent = torch.empty(9, 100), parts[me].t().clone().t()  # dense, and not contiguous
                for work in (
                    dist.all_reduce(total, group=group, async_op=asynchronous),
                    dist.reduce_scatter_tensor(part, parts[me], group=group, async_op=asynchronous),
                    dist.all_gather_into_tensor(whole, parts[me], group=group, async_op=asynchronous),
                    dist.broadcast(sent, 0, group=group, async_op=asynchronous),
                ):
                    assert work is None or work.wait()
                assert ((total - exact).abs() <= bound).all() and ((part - exact[me]).abs() <= bound[me]).all()
                assert torch.equal(whole, torch.cat(parts)) and torch.equal(sent, parts[0])
            found = functional.all_gather_tensor(parts[me], 0, group) + 0
            assert torch.equal(found, torch.cat(parts))
            told = commbench.backend.explain(group)
            for kind in (*moves, *sums):
                assert (f"{kind.collective} " in told or f"{kind.collective}, " in told) == (kind in by_profile), told
        dist.destroy_process_group()

    assert forked(3, rank) == [0, 0, 0]


def test_sums_between_nodes_are_within_the_bound_and_the_same_on_all_ranks(tmp_path: Path) -> None:
    """Four ranks on two declared nodes: 2D of all that ranks share, and what it gathers is right to the bit."""
    shared = ("all_gather", "reduce_scatter", "all_reduce")
    choices = [profiles.choice(name, "2d") for name in shared]
    file.save(profiles.profile(*choices, nodes=2, ranks_per_node=2), tmp_path / "p.json")

    def rank(me: int) -> None:
        os.environ["NCCL_HOSTID"] = f"node {me // 2}"
        source = ProfileSource(tmp_path / "p.json", reductions=True)
        install(lambda: source)
        meet(me, 4, tmp_path)
        parts = [torch.randn(4, 33, generator=torch.Generator().manual_seed(number)) for number in range(4)]
        exact, room = torch.stack(parts).double().sum(0), torch.stack(parts).abs().double().sum(0)
        bound = 3 * (torch.finfo(torch.float32).eps / 2) * room
        for later in (False, True):
            total, part, whole = parts[me].clone(), torch.empty(1, 33), torch.empty(16, 33)
            for work in (
                dist.all_reduce(total, async_op=later),
                dist.reduce_scatter_tensor(part, parts[me], async_op=later),
                dist.all_gather_into_tensor(whole, parts[me], async_op=later),
            ):
                assert work is None or work.wait()
            assert ((total - exact).abs() <= bound).all() and ((part - exact[me]).abs() <= bound[me]).all()
            assert torch.equal(whole, torch.cat(parts))
            totals = [torch.empty_like(total) for _ in range(4)]
            dist.all_gather(totals, total)
            assert all(torch.equal(each, total) for each in totals)
        for dtype in (torch.float64, torch.int64, torch.bfloat16):
            few = torch.full((3,), me + 1, dtype=dtype)
            dist.all_reduce(few)
            assert few.tolist() == [10, 10, 10]
        most = torch.full((4,), float(me))
        dist.all_reduce(most, dist.ReduceOp.MAX)
        assert most.tolist() == [3.0] * 4
        told = commbench.backend.explain()
        assert all(f"{name}" in told for name in shared) and told.count(": 2d") >= 3, told
        dist.barrier()
        dist.destroy_process_group()

    assert forked(4, rank) == [0] * 4


def test_the_reference_layer_stands_on_torchs_own_group(tmp_path: Path) -> None:
    """Under `commbench exec` it goes by the profile that it is given, once."""
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise")), tmp_path / "p.json")

    def rank(me: int) -> None:
        source = ProfileSource(tmp_path / "p.json")
        install(lambda: source)
        meet(me, 2, tmp_path)
        world = dist.group.WORLD
        assert isinstance(world, WrappedGroup)
        x, found = torch.randn(8, 16, generator=torch.Generator().manual_seed(me)), []
        for profile in (None, tmp_path / "p.json"):
            with commbench.communicator(profile=profile) as comm:
                torch.manual_seed(me)
                gate = Gate(16, GateConfig(experts=4), generator=torch.Generator().manual_seed(0))
                layer = DistributedMoE(gate, FFN(2, 16, 32), comm, schedule="sequential")
                found.append(layer(x)[0])
                assert ("pairwise" in comm.explain()) == (profile is not None)
        assert torch.equal(*found)
        assert world.profiled is not None and not world.profiled.used
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]
