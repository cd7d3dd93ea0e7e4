"""An expert layer's pass as a DAG over compute and links, of every schedule. docs/reference/planner.md has the DAGs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from commbench.stats import Floats
from commbench.strategy.compute import LayerCompute
from commbench.strategy.dag import LayerTask, finish
from commbench.strategy.draws import Draws
from commbench.strategy.exchanges import ExchangeTimes
from commbench.strategy.setting import SCHEDULES, LayerSchedule, Settings

_Cut = Callable[[Floats], Floats]
_PARM_CHUNKS = 4  # in which S2's way back goes, as ours has it
_BACKWARD = 2.0  # products of a backward pass by those of a forward one


def moe_pass(
    compute: LayerCompute, times: ExchangeTimes, settings: Settings, draws: Draws, *, backward: bool
) -> Floats:
    """Return microseconds of an expert layer's FFN part, [d, n]: gate, exchanges, experts, shared experts."""
    work = _BACKWARD if backward else 1.0
    total = np.zeros((len(draws), len(settings)))
    for place in np.unique(settings.schedule):
        at = np.flatnonzero(settings.schedule == place)

        def cut(of: Floats, at: np.ndarray[tuple[int, ...], np.dtype[np.intp]] = at) -> Floats:
            return np.asarray(of[:, at])

        schedule = SCHEDULES[int(place)]
        around = work * (cut(compute.local) + cut(compute.shared))
        total[:, at] = around + _experts(schedule, compute, times, draws, cut, work, times.near[at])
        if backward and schedule.name == "parm_s1":  # each has gated its own tokens
            total[:, at] += cut(times.gate)
    return np.maximum(total, work * compute.launch["moe"])


def _experts(
    schedule: LayerSchedule, compute: LayerCompute, times: ExchangeTimes, draws: Draws, cut: _Cut, work: float,
    near: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
) -> Floats:  # fmt: skip
    dispatch, shards, sums, gathered = map(cut, (times.dispatch, times.shards, times.sums, times.gathered))
    experts, beside = work * cut(compute.experts), draws.beside[:, None]
    holds = {name: cut(us) for name, us in times.holds.items()}
    if schedule.name == "overlap_1f1b":  # what another micro-batch computes meanwhile is in `step_time`
        return experts + 2 * (dispatch + shards)
    if schedule.name in ("pipelined", "expert_groups"):
        whole = work * cut(compute.experts_chunked) / schedule.chunks * beside
        return _by_links(_chunks(schedule.chunks, dispatch, shards, whole, holds), near)
    if schedule.name == "drop_pipelined":
        arriving = _by_links(_staircase(schedule.chunks, dispatch, shards, holds, "shards"), near)
        if times.lean:
            leaving = _by_links(_summed(schedule.chunks, sums, dispatch, gathered, holds), near)
            return arriving + experts + leaving
        leaving = _by_links(_staircase(schedule.chunks, dispatch, gathered, holds, "gathered"), near)
        return arriving + experts + sums + leaving
    if schedule.name == "parm_s2":
        back = _staircase(_PARM_CHUNKS, dispatch / _PARM_CHUNKS, gathered / _PARM_CHUNKS, {}, "gathered")
        return dispatch + experts + _by_links(back, near)
    # One thing after the other; of ranks that hold the same tokens partial results are summed, or scattered.
    return dispatch + shards + experts + np.where(sums > 0, sums, shards) + dispatch + gathered


def _chunks(
    count: int, dispatch: Floats, shards: Floats, experts: Floats, holds: Mapping[str, Floats]
) -> list[LayerTask]:
    tasks: list[LayerTask] = []
    for n in range(count):
        tasks.append(LayerTask(f"there{n}", "exchange", dispatch, (), holds.get("dispatch")))
        tasks.append(LayerTask(f"all{n}", "near", shards, (f"there{n}",), holds.get("shards")))
    for n in range(count):
        tasks.append(LayerTask(f"experts{n}", "compute", experts, (f"all{n}",)))
        tasks.append(LayerTask(f"parts{n}", "near", shards, (f"experts{n}",), holds.get("shards")))
        tasks.append(LayerTask(f"back{n}", "exchange", dispatch, (f"parts{n}",), holds.get("dispatch")))
    return tasks


def _summed(
    count: int, sums: Floats, dispatch: Floats, gathered: Floats, holds: Mapping[str, Floats]
) -> list[LayerTask]:
    """Return the way back: while a chunk is between nodes, the next one is added up, and the one before gathered."""
    tasks = [LayerTask("sum0", "near", sums, (), holds.get("sums"))]
    for n in range(count):
        tasks.append(LayerTask(f"back{n}", "exchange", dispatch, (f"sum{n}",), holds.get("dispatch")))
        if n + 1 < count:
            tasks.append(LayerTask(f"sum{n + 1}", "near", sums, (f"sum{n}",), holds.get("sums")))
        if n:
            tasks.append(LayerTask(f"gather{n - 1}", "near", gathered, (f"back{n - 1}",), holds.get("gathered")))
    return [*tasks, LayerTask(f"gather{count - 1}", "near", gathered, (f"back{count - 1}",), holds.get("gathered"))]


def _staircase(
    count: int, dispatch: Floats, gathered: Floats, holds: Mapping[str, Floats], name: str
) -> list[LayerTask]:
    """Return MoNTA's chunks: while one is gathered inside nodes, the next one is exchanged between them."""
    tasks: list[LayerTask] = []
    for n in range(count):
        tasks.append(LayerTask(f"there{n}", "exchange", dispatch, (), holds.get("dispatch")))
        tasks.append(LayerTask(f"gather{n}", "near", gathered, (f"there{n}",), holds.get(name)))
    return tasks


def _by_links(tasks: Sequence[LayerTask], near: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    """Return when all is over; where exchanges stay inside nodes (`near`), they share the links of what is there."""
    apart = finish(tasks)
    if not near.any():
        return apart
    one = [task if task.resource == "compute" else LayerTask(task.name, "exchange", task.us, task.after, task.holds)
           for task in tasks]  # fmt: skip
    return np.where(near, finish(one), apart)
