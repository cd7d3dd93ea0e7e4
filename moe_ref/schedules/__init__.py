"""Schedules: in which order, and in how many chunks, a layer sends and computes. One line each here.

    layer.schedule = schedules.get("pipelined", chunks=4)
    layer.schedule.traffic(shape)

What they use: base.py (`Layer`, `Schedule`, `Shape`, `TrafficEntry`), overlap.py (exchanges that overlap in both
passes), tp_exchange.py (exchanges of ranks that have the same tokens), planned.py (their plans). verify.py counts what
a schedule sends, equivalence.py compares what two compute, and predict.py says by a cost model how long that takes.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from commbench.errors import UsageError, unknown
from moe_ref.schedules.base import Schedule, Shape, TrafficEntry
from moe_ref.schedules.chunked import ExpertGroups, Pipelined, Sequential
from moe_ref.schedules.parm import ParmS1, ParmS2
from moe_ref.schedules.shadowed import Shadowed
from moe_ref.schedules.tensor_parallel import TensorParallel

TABLE: dict[str, type[Schedule]] = {
    "sequential": Sequential,
    "pipelined": Pipelined,
    "expert_groups": ExpertGroups,
    "shadowed": Shadowed,
    "tensor_parallel": TensorParallel,
    "parm_s1": ParmS1,
    "parm_s2": ParmS2,
}


def get(name: str, **params: Any) -> Schedule:
    """Make the schedule of this name. Raises `UsageError` for an unknown name or parameter."""
    if name not in TABLE:
        raise unknown("schedule", name, TABLE)
    known = [field.name for field in fields(TABLE[name])]  # type: ignore[arg-type]
    for param in params:
        if param not in known:
            raise UsageError(f"schedule {name} has no parameter {param!r}",
                             hint=f"it has {', '.join(known) or 'none'}")  # fmt: skip
    return TABLE[name](**params)


__all__ = ["TABLE", "Schedule", "Shape", "TrafficEntry", "get"]
