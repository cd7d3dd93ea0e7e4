"""Wrapped process groups over gloo: what torch's own functions do through them, and what an observer hears."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from commbench.backend import observer
from commbench.backend.group import WrappedGroup
from commbench.backend.install import install, plain_groups
from commbench.backend.observer import GroupInfo, ObservedCall, ObservedWork
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


def meet(rank: int, size: int, folder: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)


def test_an_observer_hears_of_each_call_once(tmp_path: Any) -> None:
    def rank(me: int) -> None:
        install(lambda: None)
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


def test_thousands_of_calls_do_not_hang(tmp_path: Any) -> None:
    """Calls that hold the interpreter's lock, as torch's trampoline does, meet gloo's threads after some hundred."""

    def rank(me: int) -> None:
        install(lambda: None)
        meet(me, 2, tmp_path)
        inp, out, world = torch.zeros(2), torch.zeros(2), dist.group.WORLD
        assert world is not None
        for _ in range(2000):
            world.alltoall_base(out, inp, [], []).wait()
        dist.destroy_process_group()

    assert forked(2, rank) == [0, 0]
