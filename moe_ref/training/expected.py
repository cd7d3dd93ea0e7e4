"""How long the exchanges of expert layers are to take in a step of a training, from what was measured before it.

`commbench train ab` imports this by its name, in the parent, before its rounds. Two sources, and either will do:

- a profile: what its tuning measured of each call's default and of its choice, between sizes on a line of logarithms;
- a cost model (docs/model.md): of every call of the schedule's plan, by the default ways, times what the profile's
  choice took over its default where there is a profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from commbench import ab
from commbench.errors import UsageError
from commbench.layout import Layout
from commbench.model import Model
from commbench.profile.table import Table
from commbench.spec import Value
from commbench.training import TrainConfig
from moe_ref.schedules.base import Shape
from moe_ref.schedules.halves import Call
from moe_ref.schedules.predict import plan, predict
from moe_ref.training import build


def shape(config: TrainConfig) -> Shape:
    """Of one part of a batch in one layer, on one rank; of a slice of it where a schedule makes slices."""
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


def exchanges_us(config: TrainConfig, own: Table | None, known: Sequence[Table], model: Model | None) -> float | None:
    """Microseconds of all expert layers' exchanges in a step; null where nobody knows them.

    own: what was tuned for this training, null for the defaults. known: profiles of these ranks, for what the defaults
    take. The time is of a rank: its parts of a batch one after the other, and of redone blocks once more.
    Raises `UsageError` for a model of several settings, or of none of the links that are needed.
    """
    schedule, of = build.schedule(config), shape(config)

    def ratio(call: Call) -> float:
        chosen, default = (None if own is None else _tuned_us(call, of, own, default=default)
                           for default in (False, True))  # fmt: skip
        return 1.0 if chosen is None or default is None else chosen / default

    try:
        stages = plan(schedule, of)
    except UsageError:  # it computes beside its exchanges
        return None
    if model is not None:
        found = predict(schedule, of, model, Layout(config.nodes, config.ranks_per_node), factor=ratio)
        forward, backward = found.forward_us, found.backward_us
    else:
        forward = backward = 0.0
        for stage in stages:
            times = [us for table in known if (us := _tuned_us(stage.calls[0], of, table, default=True)) is not None]
            if len(stage.calls) != 1 or not times:
                return None
            took = times[0] * ratio(stage.calls[0])
            forward += took if stage.phase == "forward" else 0
            backward += took if stage.phase == "backward" else 0
    lm = build.lm_config(config)
    parts = config.cut(config.ranks // config.tp)[0] * config.tp // config.ranks
    return lm.moe_layers * parts * (forward * (2 if config.recompute == "redo" else 1) + backward)


def _tuned_us(call: Call, of: Shape, table: Table, *, default: bool) -> float | None:
    """Of the choice, or of the default that it was compared with."""
    arguments: Mapping[str, Value] = {}
    if call.collective == "tp_all_to_all":
        arguments = {"tp": of.tp, "tp_input": call.name}
    curve = table.curve(call.collective, arguments=arguments) if call.group == "comm" else None
    if curve is None:
        return None
    # Schedules of groups exchange in plain memory, where a choice for another kind does not hold.
    plain = of.tp > 1 and curve.at(call.nbytes).buffers != "plain"
    return ab.tuned_us(curve, call.nbytes, default=default or plain)


__all__ = ["exchanges_us", "shape"]
