"""How long a step of every setting takes, by each draw, and what of it is what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from commbench.stats import Floats
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.compute import LayerCompute, layer_compute
from commbench.strategy.draws import Draws
from commbench.strategy.exchanges import ExchangeTimes, GradientTimes, exchange_times, gradient_times
from commbench.strategy.gemm_table import GemmTable
from commbench.strategy.layer import moe_pass
from commbench.strategy.links import LinkTimes, link_times
from commbench.strategy.memory import micro_batches, parameters
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.setting import Settings
from commbench.strategy.stages import StageLayers, stage_layers
from commbench.strategy.workload import Workload

BINDS = ("compute", "inter", "intra", "bubble", "launch")
_AT_ONCE = 1024  # settings whose draws are in memory together
_STATE_TRAVELS = 2.5  # an optimizer's step reads and writes its states and gradients about so often


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Microseconds of a step. us: [d, n]. parts: of the first draw, the middle, [n] each: `BINDS` and `optimizer`."""

    us: Floats
    parts: dict[str, Floats]


def step_time(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, draws: Draws,
    *, table: GemmTable | None = None, links: LinkTimes | None = None,
) -> StepTimes:  # fmt: skip
    """Return what a step takes.

    table: of measured products. links: of the cluster's links by these draws, where they are known already.
    """
    known = links or link_times(cluster, draws)
    found = [
        _block(model, work, cluster, settings.take(slice(first, first + _AT_ONCE)), draws, known, table)
        for first in range(0, len(settings), _AT_ONCE)
    ]
    if not found:
        return StepTimes(us=np.zeros((len(draws), 0)), parts={name: np.zeros(0) for name in (*BINDS, "optimizer")})
    return StepTimes(
        us=np.concatenate([one.us for one in found], axis=1),
        parts={name: np.concatenate([one.parts[name] for one in found]) for name in found[0].parts},
    )


def _block(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, draws: Draws, links: LinkTimes,
    table: GemmTable | None,
) -> StepTimes:  # fmt: skip
    compute = layer_compute(model, work, cluster, settings, draws, table)
    times = exchange_times(model, work, cluster, settings, draws, links)
    stages = stage_layers(model, settings.pp)
    gradients = gradient_times(model, work, cluster, settings, links, stages)
    dense, moe, computed = _layers(model, compute, times, settings, draws)
    head = 3 * np.maximum(compute.head, compute.launch["head"])
    weights_us = _gathered(gradients, settings, compute, draws, stages)
    per_stage, of_compute = [], []
    for place in range(3):
        layers = stages.dense[:, place], stages.moe[:, place]
        hops = 2 * settings.vpp * times.hop * (settings.pp > 1)
        per_stage.append(layers[0] * dense + layers[1] * moe + stages.head[:, place] * head + hops + weights_us)
        of_compute.append(layers[0] * computed[0] + layers[1] * computed[1] + stages.head[:, place] * head)
    all_stages, products = np.stack(per_stage), np.stack(of_compute)
    slowest = np.argmax(all_stages, axis=0)[None]
    longest = np.take_along_axis(all_stages, slowest, axis=0)[0]
    busy = np.take_along_axis(products, slowest, axis=0)[0]
    mean = _mean_stage(all_stages, settings)
    count = micro_batches(work, settings)
    # Who waits for the slowest stage's first micro-batch, and after its last, waits for all others.
    bubble = np.maximum(settings.pp * mean - longest, 0.0) / settings.vpp
    fill = np.where(settings.schedule_is("overlap_1f1b"), 2 * _network(times), 0.0) * stages.moe.max(axis=1)
    exposed = _exposed(gradients, busy, draws, settings)
    optimizer = _optimizer(model, work, cluster, settings, draws, stages)
    host = draws.step_us[:, None] * cluster.crowd
    us = (count * longest + bubble + fill + exposed + optimizer + host) * draws.missed[:, None]
    parts = _parts(
        count * longest[0] + fill[0], count * busy[0], bubble[0], exposed[0], optimizer[0], compute, times, settings,
        stages, count, host[0], cluster)  # fmt: skip
    return StepTimes(us=us, parts={name: float(draws.missed[0]) * part for name, part in parts.items()})


def _layers(
    model: ModelShape, compute: LayerCompute, times: ExchangeTimes, settings: Settings, draws: Draws
) -> tuple[Floats, Floats, tuple[Floats, Floats]]:
    """Return both passes of a dense and of an expert layer, and what of them is compute, [d, n] each."""
    hidden = np.maximum(times.context - compute.scores, 0.0)  # the rest goes beside the scores
    attention = np.maximum(compute.attention, compute.launch["attention"])
    ffn = np.maximum(compute.ffn, compute.launch["ffn"])
    half = attention + hidden + times.attention
    forward = [half + ffn + times.attention]
    moe_forward = moe_pass(compute, times, settings, draws, backward=False)
    forward.append(half + moe_forward + _shared_sums(model, times, settings))
    moe_work = [_moe_compute(compute, factor) for factor in (1.0, 2.0)]
    backward = [2 * (attention + hidden) + 2 * times.attention + 2 * ffn]
    moe_backward = moe_pass(compute, times, settings, draws, backward=True) + _shared_sums(model, times, settings)
    backward.append(2 * (attention + hidden) + times.attention + moe_backward)
    works = [3 * (attention + ffn), 3 * attention + moe_work[0] + moe_work[1]]
    first = [attention + ffn, attention + moe_work[0]]
    redo, stash = settings.recompute_is("redo"), settings.recompute_is("stash")
    selective = settings.recompute_is("selective")
    overlap = settings.schedule_is("overlap_1f1b")
    totals = []
    for place in range(2):
        again = np.where(redo, forward[place], 0.0) + np.where(stash, first[place], 0.0)
        again = again + np.where(selective, compute.selective, 0.0)
        total = forward[place] + backward[place] + again
        worked = works[place] + np.where(redo | stash, first[place], 0.0) + np.where(selective, compute.selective, 0.0)
        if place == 1 and overlap.any():
            network = total - worked
            total = np.where(overlap, np.maximum(worked * draws.beside[:, None], network), total)
        works[place] = np.minimum(worked, total)
        totals.append(total)
    return totals[0], totals[1], (works[0], works[1])


def _moe_compute(compute: LayerCompute, factor: float) -> Floats:
    whole = factor * (compute.local + compute.shared + compute.experts)
    return np.maximum(whole, factor * compute.launch["moe"])


def _shared_sums(model: ModelShape, times: ExchangeTimes, settings: Settings) -> Floats:
    """Return the tensor-parallel exchange of an expert layer: of shared experts, which are cut like an FFN."""
    return times.attention if model.shared_hidden else np.zeros_like(times.attention)


def _network(times: ExchangeTimes) -> Floats:
    return times.dispatch + times.shards


def _mean_stage(per_stage: Floats, settings: Settings) -> Floats:
    """Return the mean over all stages: the first, the last, and as many as there are between."""
    between = np.maximum(settings.pp - 2, 0)
    ends = np.where(settings.pp > 1, per_stage[0] + per_stage[2], per_stage[0])
    return np.asarray((ends + between * per_stage[1]) / settings.pp)


def _gathered(
    gradients: GradientTimes, settings: Settings, compute: LayerCompute, draws: Draws, stages: StageLayers
) -> Floats:
    """Return what ZeRO-3's gathers and scatters take of each micro-batch beside what its passes hide."""
    three = settings.zero >= 3
    if not three.any():
        return np.zeros_like(compute.attention)
    layers = (stages.dense + stages.moe).max(axis=1)
    hides = layers * (compute.attention + compute.ffn)
    # Weights for both passes, and the gradients' scatter in fp32, which is as many bytes as two gathers.
    return np.where(three, np.maximum(4 * gradients.gathered - 3 * hides * draws.grad_overlap[:, None], 0.0), 0.0)


def _exposed(gradients: GradientTimes, busy: Floats, draws: Draws, settings: Settings) -> Floats:
    """Return what gradients take beyond what the last micro-batch's backward pass hides."""
    hides = 2 / 3 * busy * draws.grad_overlap[:, None]
    whole = gradients.dense + gradients.experts
    return np.where(settings.zero >= 3, 0.0, np.maximum(whole - hides, 0.0))


def _optimizer(
    model: ModelShape, work: Workload, cluster: GpuCluster, settings: Settings, draws: Draws, stages: StageLayers
) -> Floats:
    its = parameters(model, work, settings, stages)
    sharers, sharded = settings.dp * settings.cp, settings.zero >= 1
    owned = sum(of.max(axis=1) / np.where(sharded, by, 1) for of, by in (
        (its.cut, sharers), (its.whole, sharers * settings.tp), (its.experts, settings.edp)))  # fmt: skip
    nbytes = owned * _STATE_TRAVELS * (work.optimizer_bytes + work.grad_bytes)
    return np.asarray(cluster.crowd * nbytes / draws.memory_us[:, None])


def _parts(
    stage: Floats, busy: Floats, bubble: Floats, exposed: Floats, optimizer: Floats, compute: LayerCompute,
    times: ExchangeTimes, settings: Settings, stages: StageLayers, count: Floats, host: Floats, cluster: GpuCluster,
) -> dict[str, Floats]:  # fmt: skip
    """Return microseconds of a step by what they are spent on, in the middle draw.

    What links take beyond compute goes to each class by what its calls take.
    """
    layers, moe = (stages.dense + stages.moe).max(axis=1), stages.moe.max(axis=1)
    exchanged = 4 * moe * settings.chunks * times.dispatch[0]
    far = np.where(times.between, exchanged, 0.0)
    hop_far = (settings.tp * settings.cp * settings.dp >= cluster.gpus_per_node) & (settings.pp > 1)
    hops = 2 * settings.vpp * times.hop[0] * (settings.pp > 1)
    context_far = settings.tp * settings.cp > cluster.gpus_per_node
    far = far + np.where(hop_far, hops, 0.0) + np.where(context_far, 3 * layers * times.context[0], 0.0)
    near = np.where(times.between, 0.0, exchanged) + 4 * layers * times.attention[0] + np.where(hop_far, 0.0, hops)
    near = near + moe * settings.chunks * (4 * times.shards[0] + 2 * times.gathered[0]) + 2 * moe * times.sums[0]
    beyond = np.maximum(stage - busy, 0.0)
    both = np.where(far + near > 0, far + near, 1.0)
    spans = (settings.dp * settings.cp * settings.tp > cluster.gpus_per_node) | (
        settings.edp * settings.ep * settings.etp > cluster.gpus_per_node)  # fmt: skip
    crossing = spans & (cluster.nodes > 1)
    reached = 3 * (
        layers * np.maximum(compute.launch["attention"] - compute.attention, 0)[0]
        + stages.dense.max(axis=1) * np.maximum(compute.launch["ffn"] - compute.ffn, 0)[0]
        + moe * np.maximum(compute.launch["moe"] - compute.local - compute.shared - compute.experts, 0)[0]
    )
    launch = np.minimum(count * reached, busy)
    return {
        "compute": busy - launch,
        "inter": beyond * far / both + np.where(crossing, exposed, 0.0),
        "intra": beyond * near / both + np.where(crossing, 0.0, exposed),
        "bubble": np.asarray(bubble),
        "launch": launch + host,
        "optimizer": optimizer,
    }
