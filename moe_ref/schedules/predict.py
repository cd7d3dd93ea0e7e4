"""How long a schedule takes, by a cost model that has seen other exchanges on the same links, and which is fastest.

    model = commbench.cost_model.fit(...)                               of plain exchanges: docs/reference/model.md
    predict(schedule, shape, model, Layout(2, 4), compute_us=...)  one pass forward and one backward
    fastest(schedules, shape, model, Layout(2, 4), ...)

What a schedule sends is in its plan (`planned.Stage`): calls between which nothing is computed, and what is in flight
beside what. Each becomes steps of messages, as `commbench.algorithms` have them, and the model says how long these take
together. What ranks compute is given, not predicted, and comes on top: so it is for schedules that do not compute
beside their exchanges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from commbench import algorithms
from commbench.cost_model import Model
from commbench.cost_model.costs import Fitted
from commbench.cost_model.loads import CaseLoads, batch, of_steps
from commbench.errors import UsageError
from commbench.layout import Layout, LinkClass
from commbench.spec import Send, Spec, Step, traffic_split
from commbench.stats import Floats
from moe_ref.schedules.base import Schedule, Shape
from moe_ref.schedules.chunked import Sequential
from moe_ref.schedules.deduplicated import Deduplicated
from moe_ref.schedules.planned import CollectiveCall, PlannedSchedule, Stage

_TWO_SIDED = 1.96  # standard deviations of a normal distribution that hold 95 %


class Predicted(NamedTuple):
    """Microseconds of one pass forward and one backward.

    low_us, high_us: 95 %, as the model's own predictions have it: for new cases, and so wide. forward_us, backward_us:
    of its communication. compute_us: as given.
    """

    time_us: float
    low_us: float
    high_us: float
    forward_us: float
    backward_us: float
    compute_us: float


def predict(
    schedule: Schedule,
    shape: Shape,
    model: Model,
    layout: Layout,
    *,
    compute_us: float = 0.0,
    factor: Callable[[CollectiveCall], float] | None = None,
) -> Predicted:
    """Predict how long one pass forward and one backward take.

    compute_us: of everything but communication, both passes. layout: the W ranks on their nodes.

    factor: of a call that has nothing beside it, what a profile's choice takes over the default's time; None: 1.

    Raises `UsageError` for a schedule that computes beside its exchanges, a layout of another number of ranks, and a
    model of several settings or of none of the links that are needed.
    """
    found = stage_times(schedule, shape, model, layout)
    if not found.stages:
        return Predicted(compute_us, compute_us, compute_us, 0.0, 0.0, compute_us)
    factors = np.array([factor(stage.calls[0]) if factor is not None and len(stage.calls) == 1 else 1.0
                        for stage in found.stages])  # fmt: skip
    times, skew_us = found.times_us * factors, found.skew_us
    backward = np.array([stage.phase == "backward" for stage in found.stages])
    forward_us, backward_us = float(times[0, ~backward].sum()) + skew_us, float(times[0, backward].sum())
    totals = times.sum(axis=1) + skew_us
    deviation = math.hypot(float(np.std(np.log(totals[1:]))) if len(totals) > 1 else 0.0, found.spread)
    width, total = math.exp(_TWO_SIDED * deviation), float(totals[0])
    return Predicted(
        total + compute_us,
        total / width + compute_us,
        total * width + compute_us,
        forward_us,
        backward_us,
        compute_us,
    )


class StageTimes(NamedTuple):
    """Microseconds of what a schedule sends in both passes, stage by stage, by default algorithms.

    times_us: sets x stages, by the fitted costs, then by each refit. skew_us: on top of one pass forward. spread: the
    standard deviation of the logarithm of a new stage's time over its prediction.
    """

    stages: tuple[Stage, ...]
    times_us: Floats
    skew_us: float
    spread: float


def stage_times(schedule: Schedule, shape: Shape, model: Model, layout: Layout) -> StageTimes:
    """Predict each stage that moves something. Raises `UsageError` as `predict` does."""
    fitted = _only(model)
    passes = [(stage, loads) for stage in plan(schedule, shape)
              if (loads := stage_loads(stage, shape, layout)) is not None]  # fmt: skip
    sets = np.array([list(fitted.costs.values()), *fitted.replicates])
    if not passes:
        return StageTimes((), np.zeros((len(sets), 0)), 0.0, fitted.spread_on(layout))
    everything = batch([loads for _, loads in passes])
    for name in fitted.unknown:
        unit = np.zeros((1, len(fitted.costs)))
        unit[0, fitted.form.costs.index(name)] = 1.0
        if (fitted.form.time_us(unit, everything) > 0).any():
            raise UsageError(f"schedule {schedule}: nothing that the model was fitted to has {name}",
                             hint="fit it to exchanges that cross the same links")  # fmt: skip
    times = fitted.form.time_us(sets, everything)
    return StageTimes(
        tuple(stage for stage, _ in passes), times, fitted.skews.of(layout.ranks), fitted.spread_on(layout)
    )


def fastest(
    schedules: Iterable[Schedule],
    shape: Shape,
    model: Model,
    layout: Layout,
    *,
    compute_us: Mapping[str, float] | None = None,
) -> Schedule:
    """Return the schedule that is fastest by the model.

    compute_us: of each schedule, by its text; None: all compute for the same time.
    """
    given = compute_us or {}
    times = {s: predict(s, shape, model, layout, compute_us=given.get(str(s), 0.0)).time_us for s in schedules}
    return min(times, key=lambda schedule: times[schedule])


def crossing(schedule: Schedule, shape: Shape, layout: Layout) -> dict[LinkClass, int]:
    """Count bytes over each class of link in both passes, all ranks together."""
    calls = [call for stage in plan(schedule, shape) for call in stage.calls]
    sends = [send for call in calls for step in steps(call, shape, layout) for send in step.sends]
    return traffic_split(sends, layout)


def stage_loads(stage: Stage, shape: Shape, layout: Layout) -> CaseLoads | None:
    """Return what the calls of a stage ask of links and processors; None where nothing moves."""
    if layout.ranks != shape.W:
        raise UsageError(f"layout {layout} of {layout.ranks} ranks for a shape of {shape.W}", hint="nodes x ranks = W")
    found: list[Step] = []
    ends: dict[str, tuple[str, ...]] = {}  # of each call, the steps after which it is over
    for call in stage.calls:
        before = tuple(dict.fromkeys(name for other in call.after for name in ends[other]))
        own = [step for step in steps(call, shape, layout) if step.sends]
        for step in own:
            after = tuple(f"{call.name}/{name}" for name in step.after) or before
            found.append(Step(name=f"{call.name}/{step.name}", sends=step.sends, after=after))
        followed = {name for step in own for name in step.after}
        last = tuple(f"{call.name}/{step.name}" for step in own if step.name not in followed)
        ends[call.name] = last or before
    return of_steps(found, layout) if found else None


def steps(call: CollectiveCall, shape: Shape, layout: Layout) -> list[Step]:
    """Return the messages of a call in all groups of its kind at once.

    all_to_all: one to each other rank. all_gather, reduce_scatter: a ring, a part in each step. all_reduce: two rings,
    one after the other. These are the bytes that gloo was counted to move, but for its reduce_scatter, which is an
    all_reduce. tp_all_to_all: commbench's default, `drop_gather`, for summands after an all_reduce. What a library does
    with small buffers may be another thing, and so what a profile has chosen.
    """
    groups = _groups(call.group, shape)
    match call.collective:
        case "all_to_all":
            sends = (Send(a, b, call.nbytes // len(ranks)) for ranks in groups for a in ranks for b in ranks if a != b)
            return [Step(name="all", sends=tuple(sends))]
        case "all_gather" | "reduce_scatter":
            return _ring(groups, call.nbytes, len(groups[0]) - 1)
        case "all_reduce":
            return _ring(groups, call.nbytes, 2 * (len(groups[0]) - 1))
        case "tp_all_to_all":
            spec = Spec(collective="tp_all_to_all", dtype="uint8", size_bytes=call.nbytes, layout=layout,
                        arguments={"tp": shape.tp, "tp_input": "replicated"})  # fmt: skip
            moved = algorithms.get("tp_all_to_all", "drop_gather").steps(spec) or []
            if call.name != "partial":
                return moved
            summed = _ring(_groups("tp", shape), call.nbytes, 2 * (shape.tp - 1))
            first = tuple(step.name for step in summed[-1:])
            return [*summed, *(Step(name=s.name, sends=s.sends, after=s.after or first) for s in moved)]
    raise UsageError(f"nobody knows what {call.collective} sends", hint="all_to_all, all_gather, reduce_scatter, ..")


def _ring(groups: Sequence[Sequence[int]], nbytes: int, rounds: int) -> list[Step]:
    part = nbytes // len(groups[0])
    sends = tuple(Send(rank, ranks[(i + 1) % len(ranks)], part)
                  for ranks in groups for i, rank in enumerate(ranks) if part and len(ranks) > 1)  # fmt: skip
    return [Step(name=f"ring-{i}", sends=sends, after=(f"ring-{i - 1}",) if i else ()) for i in range(rounds)]


def _groups(group: str, shape: Shape) -> list[list[int]]:
    """List the ranks of each group of a kind."""
    match group:
        case "comm":
            return [list(range(shape.W))]
        case "tp":
            return [list(range(first, first + shape.tp)) for first in range(0, shape.W, shape.tp)]
    return [list(range(tp_rank, shape.W, shape.tp)) for tp_rank in range(shape.tp)]


def plan(schedule: Schedule, shape: Shape) -> list[Stage]:
    """Return what is sent, in stages.

    Raises `UsageError` for a schedule that computes beside its exchanges, and for one that sends by the routing.
    """
    if isinstance(schedule, Deduplicated):
        raise UsageError(f"schedule {schedule}: whose rows go where is not in its shape",
                         hint="exchange=per_choice, or measure both: commbench train ab")  # fmt: skip
    if isinstance(schedule, PlannedSchedule):
        return schedule.stages(shape)
    if isinstance(schedule, Sequential):  # one call after the other
        return [Stage(m.phase, (CollectiveCall("all", m.collective, m.group, m.nbytes),))
                for m in schedule.traffic(shape) for _ in range(m.calls)]  # fmt: skip
    raise UsageError(f"schedule {schedule.name} computes beside its exchanges",
                     hint="predict takes sequential, tensor_parallel, parm_s1, parm_s2")  # fmt: skip


def _only(model: Model) -> Fitted:
    if len(model.settings) != 1:
        texts = "; ".join(fitted.text for fitted in model.settings.values())
        raise UsageError(f"a model of {len(model.settings)} settings: {texts}", hint="fit it to runs of one")
    (fitted,) = model.settings.values()
    return fitted
