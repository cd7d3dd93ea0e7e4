"""What a setting's layers send, as calls; and how long these take by each draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from commbench.stats import Floats
from commbench.strategy import calls
from commbench.strategy.calls import Calls, PeerGroups
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.compute import rank_skew
from commbench.strategy.draws import Draws
from commbench.strategy.links import LinkTimes
from commbench.strategy.memory import held, parameters, sent, tokens
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import DROP, SPLIT, Settings
from commbench.strategy.stages import StageLayers
from commbench.strategy.workload import Workload

_AT_ONCE = 2  # threads of a process group of gloo
_MANY = 16.0  # times the bytes of a call are nothing but bytes
_ID_BYTES = 8  # an expert's number and its weight, of each choice of a token that travels once


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTimes:
    """Microseconds of one pass of one micro-batch, [d, n]; what is not needed is 0.

    dispatch: there or back, one chunk of it. shards: of ranks that share an expert, one chunk. sums: of their partial
    results. gathered: of tokens to ranks that hold the same ones, one chunk. attention: of a tensor-parallel layer's
    half, of attention or FFN. context: keys and values. hop: to the next stage. gate: of a gate's gradients in a
    tensor-parallel group. between: whether dispatch waits for links between nodes, [n]. near: whether it shares the
    links inside nodes, [n]. holds: how long dispatch, shards, sums and gathered take their links for themselves, by
    their names; what is not there: as long as they last. lean: whether what was dropped goes back in chunks too
    (`Workload.lean_drop`).
    """

    dispatch: Floats
    shards: Floats
    sums: Floats
    gathered: Floats
    attention: Floats
    context: Floats
    hop: Floats
    gate: Floats
    between: npt.NDArray[np.bool_]
    near: npt.NDArray[np.bool_]
    holds: dict[str, Floats] = field(default_factory=dict)
    lean: bool = False


def expert_groups(settings: Settings, cluster: GpuCluster) -> PeerGroups:
    """Return the ranks that share a layer's experts; with `parm_*` those that share an expert too."""
    parm = settings.schedule_is("parm_s1", "parm_s2")
    size = np.where(parm, settings.ep * settings.etp, settings.ep)
    return calls.groups(size, np.where(parm, 1, settings.etp), cluster.gpus_per_node)


def exchange_times(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, draws: Draws, links: LinkTimes
) -> ExchangeTimes:
    """Return what one micro-batch's exchanges take, forward; backward they take as long."""
    of, w = tokens(model, settings), float(work.itemsize)
    mine, sending = held(settings, of), sent(settings, of)
    chunks = settings.chunks.astype(float)
    factor = model.capacity_factor or 1.0
    row = model.width * w
    moe = bool(model.moe_layers)
    near = cluster.gpus_per_node
    tensor = calls.groups(settings.tp, np.ones_like(settings.tp), near)
    sharing = calls.groups(settings.etp, np.ones_like(settings.tp), near)
    context = calls.groups(settings.cp, settings.tp, near)
    stages = calls.groups(settings.pp, settings.tp * settings.cp * settings.dp, near)
    experts = expert_groups(settings, cluster)
    dispatch = _dispatch(model, settings, experts, sending, row, factor)
    all_rows = model.top_k * factor * of * row  # of all tokens of a tensor-parallel group
    drops, parm = settings.tokens_are(DROP), settings.schedule_is("parm_s1", "parm_s2")
    shared = (settings.etp > 1) & moe & ~parm
    # With sequence parallelism ranks that share an expert have each other's rows; else each has those of all.
    gathers = shared & (settings.tokens_are(SPLIT) | drops)
    whole = np.where(settings.tokens_are(SPLIT), settings.etp * model.top_k * factor * mine * row, all_rows)
    lean = drops & work.lean_drop
    others = np.where(lean, (settings.ep - 1) / settings.ep, 1.0)
    shards = calls.scaled(calls.ring(sharing, whole), np.where(gathers, others / chunks, 0.0))
    sums = calls.chosen(lean, calls.scaled(calls.all_to_all(sharing, all_rows), 1 / chunks),
                        calls.ring(sharing, all_rows, 2.0))  # fmt: skip
    gathered = calls.ring(tensor, np.where(settings.schedule_is("parm_s1"), of * row, all_rows))
    # Reduce-scatter and all-gather with sequence parallelism, an all-reduce without: the same bytes.
    attention = calls.ring(tensor, of * row, 2.0)
    kv = model.heads * (model.query_dim + model.out_dim) if model.kv_lora else 2 * model.kv_heads * model.head_dim
    keys = calls.ring(context, settings.cp * of * kv * w / settings.tp)
    hop = calls.neighbours(stages, mine * row)
    gate = calls.ring(tensor, np.full(len(settings), model.width * model.experts * work.grad_bytes), 2.0)
    named = {"dispatch": dispatch, "twice": calls.scaled(dispatch, 2.0), "shards": shards, "sums": sums,
             "gathered": calls.scaled(gathered, np.where(parm, 1.0, 1 / chunks)), "attention": attention,
             "context": keys, "hop": hop, "gate": gate}  # fmt: skip
    timed = ("dispatch", "shards", "sums", "gathered")
    if cluster.cores:
        named |= {f"many {name}": calls.scaled(named[name], _MANY) for name in timed}
    us = evaluate(links, named)
    holds = _holds(us, timed) if cluster.cores else {}
    skew = rank_skew(model, settings, draws)
    there = us["dispatch"] + (skew - 1) * (us["twice"] - us["dispatch"])
    there = there + skew * draws.row_us[:, None] * _rows_between(model, settings, experts, sending)
    between = links.bound_by_inter(dispatch)
    zero = np.zeros_like(there)
    of_drop = drops & moe
    return ExchangeTimes(
        dispatch=there if moe else zero,
        shards=np.where(gathers, us["shards"], 0.0),
        sums=np.where(shared & ~settings.tokens_are(SPLIT), us["sums"], 0.0),
        gathered=np.where(of_drop, us["gathered"], 0.0),
        attention=us["attention"],
        context=us["context"],
        hop=us["hop"],
        gate=us["gate"],
        between=between,
        near=~between,
        holds=holds,
        lean=work.lean_drop,
    )


def _holds(us: dict[str, Floats], names: Sequence[str]) -> dict[str, Floats]:
    """Return how long calls of ranks that share CPUs keep others from their links.

    Gloo runs two calls of a group at a time, and what one waits for is not what its bytes take. A link between nodes
    that has rested carries some of a call at once (its token bucket), and of the next one no more.
    """
    bytes_us = {name: us[f"many {name}"] / _MANY for name in names}
    found = {name: np.clip(bytes_us[name], us[name] / _AT_ONCE, us[name]) for name in names}
    return found | {"dispatch": np.maximum(us["dispatch"], bytes_us["dispatch"])}


def evaluate(links: LinkTimes, named: dict[str, Calls]) -> dict[str, Floats]:
    """Return the microseconds of several kinds of calls, [d, n] each, asked for at once."""
    times = links.us(calls.joined(list(named.values())))
    n = len(next(iter(named.values())))
    return {name: times[:, place * n : (place + 1) * n] for place, name in enumerate(named)}


def _dispatch(
    model: ModelShape, settings: Settings, of: PeerGroups, sending: Floats, row: float, factor: float
) -> Calls:
    """Return one chunk of the exchange of tokens, there or back."""
    pieces = sending / settings.chunks
    copies = np.where(settings.schedule_is("parm_s1", "parm_s2"), settings.etp, 1)
    choices = model.top_k * factor * pieces * row * copies
    found = calls.all_to_all(of, choices)
    found = calls.chosen(settings.exchange_is("2d_intra_first"), calls.two_hops(of, choices), found)
    once = np.full(len(pieces), row + _ID_BYTES * model.top_k)
    for name, make in (("per_rank", calls.per_rank), ("per_node", calls.per_node)):
        pick = settings.exchange_is(name)
        if pick.any():
            found = calls.chosen(pick, make(of, pieces * factor, once, model.experts, model.top_k), found)
    gathered = calls.ring(of, of.size * pieces * row)
    return calls.chosen(settings.exchange_is("all_gather"), gathered, found)


def _rows_between(model: ModelShape, settings: Settings, of: PeerGroups, sending: Floats) -> Floats:
    """Return rows that a rank sends to other nodes in one chunk, where a token travels once, [n]."""
    pieces = sending * (model.capacity_factor or 1.0) / settings.chunks
    ranks = calls.reached(model.experts, of.size, model.top_k) * (of.size - of.per_node)
    nodes = calls.reached(model.experts, of.nodes, model.top_k) * (of.nodes - 1)
    return pieces * np.where(settings.exchange_is("per_rank"), ranks,
                             np.where(settings.exchange_is("per_node"), nodes, 0.0))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientTimes:
    """Microseconds of a step on the most loaded stage, [d, n]: of reducing gradients and handing out weights; and with
    ZeRO-3 of gathering a stage's weights once."""

    dense: Floats
    experts: Floats
    gathered: Floats


def gradient_times(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, links: LinkTimes, stages: StageLayers
) -> GradientTimes:
    """Return what gradients and weights take between ranks that have the same parameters."""
    near = cluster.gpus_per_node
    its = parameters(model, work, settings, stages)
    sharers = settings.dp * settings.cp
    groups = {"dense": (its.cut, calls.groups(sharers, settings.tp, near)),
              "whole": (its.whole, calls.groups(sharers * settings.tp, np.ones_like(settings.tp), near)),
              "experts": (its.experts, calls.groups(settings.edp, settings.etp * settings.ep, near))}  # fmt: skip
    spread = settings.zero >= 1
    times = np.where(spread & (not work.all_reduces), 1.0, 2.0)  # a reduce-scatter, or an all-reduce
    hand = calls.trees if cluster.cores else calls.ring  # gloo's broadcasts, or libraries that pass it on in pieces
    named: dict[str, Calls] = {}
    for name, (parts, of) in groups.items():
        owned = parts.max(axis=1)
        named[name] = calls.ring(of, owned * work.grad_bytes, times)
        named[f"{name}_handed"] = hand(of, owned * work.weight_bytes)
        named[f"{name}_weights"] = calls.ring(of, owned * work.weight_bytes)
    us = evaluate(links, named)
    handed = spread & (settings.zero < 3)
    took = {name: us[name] + np.where(handed, us[f"{name}_handed"], 0.0) for name in groups}
    gathered = sum(us[f"{name}_weights"] for name in groups)
    return GradientTimes(dense=took["dense"] + took["whole"], experts=took["experts"],
                         gathered=np.where(settings.zero >= 3, gathered, 0.0))  # fmt: skip
