"""Predicts how long the exchanges of expert layers take in a step of a training, from what was measured before it.

`commbench train ab` imports this by its name, in the parent, before its rounds. Two sources, and either will do:

- a profile: what its tuning measured of each call's default and of its choice, between sizes on a line of logarithms;
- a cost model (docs/reference/model.md): of every call of the schedule's plan, by the default algorithms, times what
  the profile's choice took over its default where there is a profile.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from commbench import payloads
from commbench.communicators import routed_choice
from commbench.cost_model import Model
from commbench.cost_model.fit import TINY_US
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.profile.table import Curve, Table
from commbench.spec import Value
from commbench.train.ab_prediction import ExchangeTime, default_us, gain, gain_deviation
from commbench.train.config import TrainConfig
from moe_ref.kept_buffers import KEPT
from moe_ref.schedules.base import Schedule, Shape
from moe_ref.schedules.planned import CollectiveCall, Stage
from moe_ref.schedules.predict import plan, stage_times
from moe_ref.training import build


def shape(config: TrainConfig) -> Shape:
    """Return the shape of one micro-batch in one layer, on one rank; of a slice where a schedule makes slices."""
    lm, groups = build.lm_config(config), config.ranks // config.tp
    tokens = config.cut(groups)[1] * config.context
    slices = config.tp if config.schedule == "parm_s1" else 1
    capacity = lm.gate.capacity
    itemsize = build.SENT_BYTES[config.dtype]
    weights = 2 * config.width * config.hidden + config.hidden + config.width
    return Shape(
        T=tokens, D=config.width, E=config.experts, K=config.top_k, W=config.ranks, tp=config.tp,
        C=None if capacity.dropless else capacity.slots(-(-tokens // slices), config.experts, config.top_k),
        itemsize=itemsize, token_itemsize=max(4, itemsize),
        weight_bytes=itemsize * weights * config.experts // config.ranks,
        gate_bytes=max(4, itemsize) * config.width * config.experts,
        payload=payloads.get(config.payload), payload_back=payloads.get(config.payload_back),
        gate_itemsize=max(4, itemsize),
    )  # fmt: skip


def check(config: TrainConfig) -> None:
    """Raise `UsageError` for a model or a schedule that ranks would refuse, before any rank is started."""
    build.make_schedule(config)
    build.lm_config(config)


def exchanges(
    config: TrainConfig, own: Table | None, known: Sequence[Table], model: Model | None
) -> list[ExchangeTime]:
    """Return what all expert layers' exchanges take in a step, kind by kind, and what these times may be wrong by.

    own: what was tuned for this training, None for the defaults. known: profiles of these ranks, for what the defaults
    take. The time is of a rank: its micro-batches one after the other, and of redone blocks once more.

    Causes of errors: the gain of each choice of a profile, by its interval; each refit of the model's costs; and what a
    model misses of each kind of stage. A profile has no interval of what its defaults take.

    Raises `UsageError` that says why nobody knows: a schedule that computes beside its exchanges, what no profile has
    and there is no model for, or a model of several settings or of none of the links that are needed.
    """
    of = shape(config)
    tuned = None if own is None else own.curves("dispatch")
    schedule = build.settled_schedule(config, functools.partial(routed_choice.choose, tuned))
    if model is not None:
        stages, times = _by_model(config, schedule, of, model)
    else:
        stages = plan(schedule, of)
        times = [_by_profiles(schedule, stage, of, known) for stage in stages]
    lm = build.lm_config(config)
    micro_batches = config.cut(config.ranks // config.tp)[0] * config.tp // config.ranks
    found = []
    for stage, time in zip(stages, times, strict=True):
        made = lm.moe_layers * micro_batches * (2 if stage.phase == "forward" and config.recompute == "redo" else 1)
        chosen = _as_chosen(stage, time, of, own)
        found.append(chosen._replace(us=made * chosen.us))
    return found


def _by_model(
    config: TrainConfig, schedule: Schedule, of: Shape, model: Model
) -> tuple[list[Stage], list[ExchangeTime]]:
    found = stage_times(schedule, of, model, Layout(config.nodes, config.ranks_per_node))
    logs = np.log(np.maximum(found.times_us, TINY_US))
    # As many causes as refits, each of them with its part of their variance.
    refits = (logs[1:] - logs[0]) / np.sqrt(max(1, len(logs) - 1))
    times = []
    for column, stage in enumerate(found.stages):
        causes: dict[Hashable, float] = {("refit", n): float(one) for n, one in enumerate(refits[:, column])}
        causes["missed", stage.calls] = found.spread
        times.append(ExchangeTime(float(found.times_us[0, column]), causes))
    stages = list(found.stages)
    if found.skew_us:  # that no choice changes
        stages.append(Stage("forward", ()))
        times.append(ExchangeTime(found.skew_us, {}))
    return stages, times


def _by_profiles(schedule: Schedule, stage: Stage, of: Shape, known: Sequence[Table]) -> ExchangeTime:
    call = stage.calls[0]
    curves = [curve for table in known if (curve := _curve(call, of, table)) is not None]
    times = [us for curve in curves if (us := default_us(curve, call.nbytes)) is not None]
    if len(stage.calls) != 1 or not times:
        raise UsageError(f"no profile has what {schedule} sends",
                         hint="model=FILE, from commbench model --out")  # fmt: skip
    return ExchangeTime(times[0], {})


def _as_chosen(stage: Stage, time: ExchangeTime, of: Shape, own: Table | None) -> ExchangeTime:
    """Return the time with the profile's choice in place of the default, of a call that has nothing beside it."""
    if own is None or len(stage.calls) != 1 or (curve := _curve(stage.calls[0], of, own)) is None:
        return time
    call = stage.calls[0]
    choice, faster = curve.at(call.nbytes), _gain(call, of, curve)
    deviation = 0.0 if faster == 1.0 else gain_deviation(choice, call.nbytes)
    # Of the same choice, in whichever file: a profile has no names.
    cause = "choice", call.collective, repr(choice)
    return ExchangeTime(time.us / faster, {**time.deviations, cause: -deviation})


def _curve(call: CollectiveCall, of: Shape, table: Table) -> Curve | None:
    """Return what was tuned for such calls; profiles are of all ranks' exchanges."""
    arguments: Mapping[str, Value] = {}
    if call.collective == "tp_all_to_all":
        arguments = {"tp": of.tp, "tp_input": call.name}
    return table.curve(call.collective, arguments=arguments) if call.group == "comm" else None


def _gain(call: CollectiveCall, of: Shape, curve: Curve) -> float:
    """Return the gain over the default.

    A choice for memory that is not plain holds where `moe_ref.kept_buffers` makes it, so not in groups.
    """
    choice = curve.at(call.nbytes)
    if choice.buffers == "plain" or (of.tp == 1 and call.collective in KEPT):
        return gain(curve, call.nbytes)
    if choice.on_plain is None:
        return 1.0
    raise UsageError(f"{choice.on_plain.label} is what the profile has for plain memory, and its gain is not in it",
                     hint="tune with buffers=plain")  # fmt: skip


__all__ = ["check", "exchanges", "shape"]
