"""The plans of schedules are what is issued: in which order, of what size, and after which calls are over."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from moe_ref import schedules
from moe_ref.distributed import DistributedMoE
from moe_ref.schedules import Shape
from moe_ref.schedules.parm import ParmS1, ParmS2
from moe_ref.schedules.planned import CollectiveCall
from moe_ref.schedules.tensor_parallel import TensorParallel

E, D = 6, 4


class Noted:
    """A communicator that sends nothing, and notes what is issued and what was waited for by then."""

    device = torch.device("cpu")

    def __init__(self, group: str, size: int, log: list[tuple[str, str, int, frozenset[int]]], over: set[int]) -> None:
        self.rank, self.size = size - 1, size
        self._group, self._log, self._over = group, log, over

    def __getattr__(self, collective: str) -> Any:
        def call(out: Tensor, inp: Tensor, *, async_op: bool = False, **_: Any) -> Any:
            number, over = len(self._log), self._over
            self._log.append((collective, self._group, max(out.nbytes, inp.nbytes), frozenset(over)))
            out.zero_()
            if not async_op:
                over.add(number)
            return type("Pending", (), {"wait": lambda self: over.add(number)})()

        return call


def closed(calls: tuple[CollectiveCall, ...]) -> list[set[int]]:
    """Of each call, all that is over when it is issued: what it names, and what that came after."""
    numbers = {call.name: number for number, call in enumerate(calls)}
    found: list[set[int]] = []
    for call in calls:
        named = {numbers[name] for name in call.after}
        found.append(named.union(*(found[number] for number in named)))
    return found


@pytest.mark.parametrize("capacity", [0, 4, 12, 40])
@pytest.mark.parametrize(
    "schedule",
    [
        *(TensorParallel(tp_tokens=way) for way in ("duplicate", "drop", "profile")),
        *(TensorParallel(tp_tokens="drop_pipelined", chunks=chunks) for chunks in (1, 2, 3, 7)),
        *(ParmS2(chunks=chunks) for chunks in (1, 2, 5)),
        ParmS1(),
    ],
    ids=str,
)
@pytest.mark.parametrize(("groups", "tp_size"), [(2, 4), (3, 2), (1, 4)])
def test_plans_are_what_is_issued(groups: int, tp_size: int, schedule: Any, capacity: int) -> None:
    shape = Shape(T=8, D=D, E=E, K=2, C=capacity, W=groups * tp_size, tp=tp_size)
    dispatch, combine = schedule.stages(shape)[:2]
    for stage in (dispatch, combine):
        log: list[tuple[str, str, int, frozenset[int]]] = []
        over: set[int] = set()
        sizes = {"comm": groups * tp_size, "tp": tp_size, "ep": groups}
        comms = {name: Noted(name, size, log, over) for name, size in sizes.items()}
        layer = cast(DistributedMoE, type("Layer", (), comms)())
        exchange = schedule.exchange(layer)
        if stage is dispatch:
            out = exchange.dispatch(torch.zeros(E, capacity, D))
        else:
            rows = groups * tp_size * capacity if isinstance(schedule, ParmS1) else groups * capacity
            out = exchange.combine(torch.zeros(E // groups, rows, D))
            assert out.shape == (E, capacity, D)
        assert len(over) == len(log), "all was waited for"
        assert [entry[:3] for entry in log] == [(c.collective, c.group, c.nbytes) for c in stage.calls]
        assert [set(entry[3]) for entry in log] == closed(stage.calls)


def test_chunks_are_in_flight_together() -> None:
    shape = Shape(T=8, D=D, E=E, K=2, C=12, W=4, tp=2)
    dispatch, combine = TensorParallel(tp_tokens="drop_pipelined", chunks=3).stages(shape)[:2]
    for stage, beside in ((dispatch, ("exchange-1", "gather-0")), (combine, ("exchange-1", "sum-2"))):
        before = dict(zip([call.name for call in stage.calls], closed(stage.calls), strict=True))
        names = [call.name for call in stage.calls]
        one, two = beside
        assert names.index(one) not in before[two] and names.index(two) not in before[one]
    assert schedules.get("tensor_parallel", tp_tokens="drop").stages(shape)[0].calls[1].after == ("exchange-0",)
