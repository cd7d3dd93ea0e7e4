"""Parm (arXiv 2407.00599): its two schedules over DeepSpeed-MoE's, on a grid of 1296 layers, by the planner's links.

P ranks hold the same tokens (MP), Q share an expert (ESP). X: bytes of a rank's tokens, S = K f X of their rows.
DeepSpeed-MoE gathers S Q within Q ranks, exchanges it twice, and all-reduces it; all of it, and the products, P times.
S1: each of P takes its part before the gate; one exchange over all ranks each way, then X is gathered within P ranks.
S2: the part is taken after the gate, and S is gathered beside the way back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from commbench.stats import Floats
from commbench.strategy import calls
from commbench.strategy.cluster import GpuCluster, LinkCost
from commbench.strategy.draws import Draws, draw
from commbench.strategy.exchanges import evaluate
from commbench.strategy.links import link_times
from commbench.strategy.papers.figure import Band, PaperFigure, PaperRow
from commbench.strategy.setting import Ints
from commbench.strategy.tagged import Tagged

SOURCE = "https://arxiv.org/abs/2407.00599"
_DRAWS = 50
# 2 clusters x 8 x 3^4 = 1296 layers.
_SHARED = [(p, q) for p, q in itertools.product((1, 2, 4), repeat=2) if (p, q) != (1, 1)]
_BATCH, _CONTEXT, _WIDTH, _TIMES_WIDER = (2, 4, 8), (512, 1024, 2048), (1024, 2048, 4096), (1, 2, 4)
_TOP_K, _CAPACITY, _ITEMSIZE = 2, 1.2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layers:
    """Layers of the grid as columns, [n]. rows: K f T of a rank; x: bytes of its tokens; flop: forward, of its rows."""

    p: Ints
    q: Ints
    rows: Floats
    x: Floats
    flop: Floats

    @classmethod
    def of_grid(cls) -> _Layers:
        grid = list(itertools.product(_SHARED, _BATCH, _CONTEXT, _WIDTH, _TIMES_WIDER))
        tokens = np.array([batch * context for _, batch, context, _, _ in grid], dtype=float)
        width = np.array([one[3] for one in grid], dtype=float)
        wider = np.array([one[4] for one in grid], dtype=float)
        rows = _TOP_K * _CAPACITY * tokens
        return cls(
            p=np.array([one[0][0] for one in grid]), q=np.array([one[0][1] for one in grid]), rows=rows,
            x=tokens * width * _ITEMSIZE, flop=4 * rows * width * width * wider,
        )  # fmt: skip


def clusters() -> tuple[GpuCluster, GpuCluster]:
    """Return a server of eight GPUs on PCIe, and 32 GPUs on eight nodes with 100 Gbit/s each."""

    def guessed(value: float) -> Tagged:
        return Tagged(value, "default")

    def made(nodes: int, per_node: int, peak: float) -> GpuCluster:
        return GpuCluster(
            nodes=nodes, gpus_per_node=per_node, memory_gib=guessed(24), peak_tflops=guessed(peak),
            memory_gbs=guessed(700), links={"intra": LinkCost(gbs=guessed(10), alpha_us=guessed(20)),
                                            "inter": LinkCost(gbs=guessed(12), alpha_us=guessed(20))},
        )  # fmt: skip

    return made(1, 8, 75), made(8, 4, 13)  # TFLOP/s in fp32 or TF32


def layer_us(layers: _Layers, cluster: GpuCluster, draws: Draws) -> dict[str, Floats]:
    """Return microseconds of both passes of each layer, [d, n], by each order."""
    s, p, q = _TOP_K * _CAPACITY * layers.x, layers.p, layers.q
    near, all_ranks = cluster.gpus_per_node, np.full(len(p), cluster.gpus)
    sharing, holding = calls.groups(q, np.ones_like(q), near), calls.groups(p, np.ones_like(p), near)
    us = evaluate(link_times(cluster, draws), {
        "gather_shards": calls.ring(sharing, s * q),
        "sum_shards": calls.ring(sharing, s * q, 2.0),
        "exchange": calls.all_to_all(calls.groups(all_ranks // q, q, near), s * q),
        "fused": calls.all_to_all(calls.groups(all_ranks, np.ones_like(q), near), s * q / p),
        "gather_tokens": calls.ring(holding, layers.x),
        "gather_rows": calls.ring(holding, s),
    })  # fmt: skip
    products = 3 * layers.flop / (draws.flop_us * draws.grouped)[:, None]  # forward, and twice as much backward
    fused = 2 * us["fused"] + us["gather_tokens"]
    beside = us["fused"] + np.maximum(us["fused"], us["gather_rows"])
    return {
        "DeepSpeed-MoE": 2 * (us["gather_shards"] + 2 * us["exchange"] + us["sum_shards"]) + products,
        "S1": 2 * fused + products / p,
        "S2": 2 * beside + products / p,
    }


def grid(gpus: Sequence[int] = ()) -> PaperFigure:
    """Return how much faster a layer is by the better schedule. gpus: not asked for, the paper has 8 and 32."""
    layers, rows, every, firsts = _Layers.of_grid(), [], [], []
    for cluster in clusters():
        us = layer_us(layers, cluster, draw(cluster, draws=_DRAWS))
        gains = us["DeepSpeed-MoE"] / np.minimum(us["S1"], us["S2"])
        every.append(gains)
        firsts.append(us["S1"][0] < us["S2"][0])
        where = f"{cluster.nodes} x {cluster.gpus_per_node} GPUs"
        for number, name in ((0.0, "least"), (0.5, "median"), (1.0, "largest")):
            of_each = np.quantile(gains, number, axis=1)
            rows.append(PaperRow(what=f"{where}: the {name} of {gains.shape[1]} layers", band=Band.of(of_each)))
    both = np.concatenate(every, axis=1)
    share = 100 * float(np.mean(np.concatenate(firsts)))
    rows.append(PaperRow(what="the least of all", band=Band.of(both.min(axis=1)), published=1.13))
    rows.append(PaperRow(what="the largest of all", band=Band.of(both.max(axis=1)), published=5.77))
    return PaperFigure(
        name="parm", title="Parm: 1296 layers", ratio="time of DeepSpeed-MoE's order over the better of S1 and S2",
        source=SOURCE, rows=tuple(rows),
        says=(
            f"the published gains are from 1.13x to 5.77x, these from {both[0].min():.2f}x to {both[0].max():.2f}x: "
            "the most where four ranks hold the same tokens and four share an expert",
            f"S1 is the faster in {share:.0f} % of layers, S2 in {100 - share:.0f} %",
        ),
        left_open=("the sizes of its 1296 layers: these are ours", "its links, and what products reach on its GPUs"),
    )  # fmt: skip
