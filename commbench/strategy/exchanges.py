"""What a setting's layers send, as calls; and how long these take by each draw."""

from __future__ import annotations

from dataclasses import dataclass

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

_ID_BYTES = 8  # an expert's number and its weight, of each choice of a token that travels once


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeTimes:
    """Microseconds of one pass of one micro-batch, [d, n]; what is not needed is 0.

    dispatch: there or back, one chunk of it. shards: of ranks that share an expert, one chunk. sums: of their partial
    results. gathered: of tokens to ranks that hold the same ones, one chunk. attention: of a tensor-parallel layer's
    half, of attention or FFN. context: keys and values. hop: to the next stage. between: whether dispatch waits for
    links between nodes, [n]. near: whether it shares the links inside nodes, [n].
    """

    dispatch: Floats
    shards: Floats
    sums: Floats
    gathered: Floats
    attention: Floats
    context: Floats
    hop: Floats
    between: npt.NDArray[np.bool_]
    near: npt.NDArray[np.bool_]


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
    dispatch = _dispatch(model, settings, expert_groups(settings, cluster), sending, row, factor)
    all_rows = model.top_k * factor * of * row  # of all tokens of a tensor-parallel group
    drops, parm = settings.tokens_are(DROP), settings.schedule_is("parm_s1", "parm_s2")
    shared = (settings.etp > 1) & moe & ~parm
    # With sequence parallelism ranks that share an expert have each other's rows; else each has those of all.
    gathers = shared & (settings.tokens_are(SPLIT) | drops)
    whole = np.where(settings.tokens_are(SPLIT), settings.etp * model.top_k * factor * mine * row, all_rows)
    shards = calls.scaled(calls.ring(sharing, whole), np.where(gathers, 1 / chunks, 0.0))
    sums = calls.ring(sharing, all_rows, 2.0)
    gathered = calls.ring(tensor, np.where(settings.schedule_is("parm_s1"), of * row, all_rows))
    # Reduce-scatter and all-gather with sequence parallelism, an all-reduce without: the same bytes.
    attention = calls.ring(tensor, of * row, 2.0)
    kv = model.heads * (model.query_dim + model.out_dim) if model.kv_lora else 2 * model.kv_heads * model.head_dim
    keys = calls.ring(context, settings.cp * of * kv * w / settings.tp)
    hop = calls.neighbours(stages, mine * row)
    named = {"dispatch": dispatch, "twice": calls.scaled(dispatch, 2.0), "shards": shards, "sums": sums,
             "gathered": calls.scaled(gathered, np.where(parm, 1.0, 1 / chunks)), "attention": attention,
             "context": keys, "hop": hop}  # fmt: skip
    us = evaluate(links, named)
    skew = rank_skew(model, settings, draws)
    there = us["dispatch"] + (skew - 1) * (us["twice"] - us["dispatch"])
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
        between=between,
        near=~between,
    )


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
    dense, experts = (parts.max(axis=1) for parts in parameters(model, settings, stages))
    replicas = calls.groups(settings.dp * settings.cp, settings.tp, near)
    others = calls.groups(settings.edp, settings.etp * settings.ep, near)
    reduced = np.where(settings.zero >= 1, 2.0 if work.all_reduces else 1.0, 2.0) * work.grad_bytes
    handed = np.where((settings.zero >= 1) & (settings.zero < 3), work.weight_bytes, 0.0)
    us = evaluate(links, {
        "dense": calls.ring(replicas, dense * (reduced + handed)),
        "experts": calls.ring(others, experts * (reduced + handed)),
        "dense_weights": calls.ring(replicas, dense * work.weight_bytes),
        "expert_weights": calls.ring(others, experts * work.weight_bytes),
    })  # fmt: skip
    gathered = np.where(settings.zero >= 3, us["dense_weights"] + us["expert_weights"], 0.0)
    return GradientTimes(dense=us["dense"], experts=us["experts"], gathered=gathered)
