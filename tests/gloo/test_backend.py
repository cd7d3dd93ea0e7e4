"""Wrapped process groups over gloo: what torch's own functions do through them, and what an observer hears."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

import commbench.backend
from commbench.backend import observer
from commbench.backend.group import WrappedGroup
from commbench.backend.install import install
from commbench.backend.observer import GroupInfo, ObservedCall, ObservedWork
from commbench.backend.source import ProfileSource
from commbench.profile import file
from commbench.transports.plain_groups import plain_groups
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
    choices = [profiles.choice("all_to_all", "pairwise"), profiles.choice("all_to_allv", "pairwise", evidence=[worth])]
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
        assert "pairwise window=1" in told and "uneven exchanges: 6 of 6 calls" in told
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
    file.save(profiles.profile(profiles.choice("all_to_all", "pairwise"), nodes=1, ranks_per_node=4), elsewhere)
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
    assert "rank 1: " in second and "torn.json" in second


@pytest.mark.parametrize("size", [3])
def test_the_public_api_is_the_same_to_the_bit(size: int, tmp_path: Path) -> None:
    """Every function on tensors, in the world and in sub-groups; tests/bench/backend.py has the rest, on 2 to 4."""
    path = tmp_path / "p.json"
    file.save(
        profiles.profile(
            profiles.choice("all_to_all", "pairwise"),
            profiles.choice("all_to_allv", "pairwise", evidence=[replace(profiles.EVIDENCE, default_us=1e9)]),
        ),
        path,
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
