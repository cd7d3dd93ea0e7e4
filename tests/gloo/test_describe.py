"""What an observer is told of calls: the same object for calls that are like each other, and for no others."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import (
    AllgatherOptions,
    AllreduceOptions,
    AllToAllOptions,
    BroadcastOptions,
    ReduceScatterOptions,
)

from commbench.backend import describe
from commbench.backend.describe import Descriptions, observed_call
from commbench.backend.observer import GroupInfo

WORLD = GroupInfo("0", (0, 1), 0, "cpu:gloo")


def options(made: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(made, name, value)
    return made


def calls() -> dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]]:
    """Calls of which no two are alike, each made anew."""
    some, more, half = torch.ones(4), torch.ones(8), torch.ones(4, dtype=torch.bfloat16)
    return {
        "exchange": ("alltoall_base", (some, some, [], [], AllToAllOptions()), {}),
        "larger": ("alltoall_base", (more, more, [], [], AllToAllOptions()), {}),
        "of its time": ("all_to_all_single", (some, some, [], [], AllToAllOptions()), {}),
        "sync": ("alltoall_base", (some, some, [], [], options(AllToAllOptions(), asyncOp=False)), {}),
        "uneven": ("alltoall_base", (some, some, [1, 3], [2, 2], AllToAllOptions()), {}),
        "sum": ("allreduce", ([some], AllreduceOptions()), {}),
        "sum of halves": ("allreduce", ([half], AllreduceOptions()), {}),
        "sum of two": ("allreduce", ([some, half], AllreduceOptions()), {}),
        "by an operation": ("allreduce", ([some], dist.ReduceOp.SUM), {}),
        "by name": ("allreduce", ([more],), {"opts": AllreduceOptions()}),
        "broadcast": ("broadcast", ([some], BroadcastOptions()), {}),
        "of rank 1": ("broadcast", ([some], options(BroadcastOptions(), rootRank=1)), {}),
        "scattered sum": ("_reduce_scatter_base", (some, more, ReduceScatterOptions()), {}),
        "gathered": ("_allgather_base", (more, some, AllgatherOptions()), {}),
    }


def test_calls_that_are_alike_are_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Descriptions(WORLD)
    first, again = ({name: known.of(*call) for name, call in calls().items()} for _ in range(2))
    fresh = {name: observed_call(WORLD, *call) for name, call in calls().items()}
    assert first == again == fresh
    told = list(first.values())
    assert len({id(one) for one in told}) == len(told)
    made_again = {"uneven", "sum of two", "by an operation", "by name"}
    assert {name for name in first if first[name] is not again[name]} == made_again
    monkeypatch.setattr(describe, "_MOST_KEPT", 2)
    few = Descriptions(WORLD)
    assert {name: few.of(*call) for name, call in calls().items()} == fresh
    assert len(few._kept) <= 2
