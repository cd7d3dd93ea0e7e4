"""Predicts how long the exchanges of expert layers take in a step of a training, from what was measured before it.

`commbench train ab` imports this by its name, in the parent, before its rounds. Two sources, and either will do:

- a profile: what its tuning measured of each call's default and of its choice, between sizes on a line of logarithms;
- a cost model (docs/reference/model.md): of every call of the schedule's plan, by the default algorithms, times what
  the profile's choice took over its default where there is a profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commbench.cost_model import Model
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.profile.table import Curve, Table
from commbench.spec import Value
from commbench.train import ab
from commbench.train.config import TrainConfig
from moe_ref.kept_buffers import KEPT
from moe_ref.schedules.base import Shape
from moe_ref.schedules.planned import CollectiveCall
from moe_ref.schedules.predict import plan, predict
from moe_ref.training import build


def shape(config: TrainConfig) -> Shape:
    """Return the shape of one micro-batch in one layer, on one rank; of a slice where a schedule makes slices."""
    lm, groups = build.lm_config(config), config.ranks // config.tp
    tokens = config.cut(groups)[1] * config.context
    slices = config.tp if config.schedule == "parm_s1" else 1
    capacity = lm.gate.capacity
    itemsize = {"fp32": 4, "bf16": 2, "fp64": 8}[config.dtype]
    weights = 2 * config.width * config.hidden + config.hidden + config.width
    return Shape(
        T=tokens, D=config.width, E=config.experts, K=config.top_k, W=config.ranks, tp=config.tp,
        C=None if capacity.dropless else capacity.slots(-(-tokens // slices), config.experts, config.top_k),
        itemsize=itemsize, token_itemsize=max(4, itemsize),
        weight_bytes=itemsize * weights * config.experts // config.ranks,
        gate_bytes=max(4, itemsize) * config.width * config.experts,
    )  # fmt: skip


def check(config: TrainConfig) -> None:
    """Raise `UsageError` for a model or a schedule that ranks would refuse, before any rank is started."""
    build.make_schedule(config)
    build.lm_config(config)


def exchanges_us(config: TrainConfig, own: Table | None, known: Sequence[Table], model: Model | None) -> float:
    """Return the microseconds of all expert layers' exchanges in a step.

    own: what was tuned for this training, None for the defaults. known: profiles of these ranks, for what the defaults
    take. The time is of a rank: its micro-batches one after the other, and of redone blocks once more.
    Raises `UsageError` that says why nobody knows: a schedule that computes beside its exchanges, what no profile has
    and there is no model for, or a model of several settings or of none of the links that are needed.
    """
    schedule, of = build.make_schedule(config), shape(config)

    def ratio(call: CollectiveCall) -> float:
        curve = None if own is None else _curve(call, of, own)
        return 1.0 if curve is None else 1 / _gain(call, of, curve)

    stages = plan(schedule, of)
    if model is not None:
        found = predict(schedule, of, model, Layout(config.nodes, config.ranks_per_node), factor=ratio)
        forward, backward = found.forward_us, found.backward_us
    else:
        took = {"forward": 0.0, "backward": 0.0}
        for stage in stages:
            call = stage.calls[0]
            curves = [curve for table in known if (curve := _curve(call, of, table)) is not None]
            times = [us for curve in curves if (us := ab.default_us(curve, call.nbytes)) is not None]
            if len(stage.calls) != 1 or not times:
                raise UsageError(f"no profile has what {schedule} sends", hint="model=FILE, from commbench model --out")
            took[stage.phase] += times[0] * ratio(call)
        forward, backward = took["forward"], took["backward"]
    lm = build.lm_config(config)
    micro_batches = config.cut(config.ranks // config.tp)[0] * config.tp // config.ranks
    return lm.moe_layers * micro_batches * (forward * (2 if config.recompute == "redo" else 1) + backward)


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
        return ab.gain(curve, call.nbytes)
    if choice.on_plain is None:
        return 1.0
    raise UsageError(f"{choice.on_plain.label} is what the profile has for plain memory, and its gain is not in it",
                     hint="tune with buffers=plain")  # fmt: skip


__all__ = ["check", "exchanges_us", "shape"]
