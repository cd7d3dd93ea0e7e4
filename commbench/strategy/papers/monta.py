"""MoNTA's 2 x 70B on 16 A800 (arXiv 2411.00662), by the planner: dropping what tensor-parallel neighbours hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commbench.strategy.cluster import GpuCluster, LinkCost
from commbench.strategy.draws import Efficiency, draw
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.papers.figure import Band, PaperFigure, PaperRow
from commbench.strategy.setting import DROP, DUPLICATE, LayerSchedule, Setting, Settings
from commbench.strategy.step_time import step_time
from commbench.strategy.tagged import Tagged
from commbench.strategy.workload import Workload

SOURCE = "https://arxiv.org/abs/2411.00662"
_PUBLISHED = 1.13
_NODE_GBS = (50, 100, 200)  # of a node, all of its NICs together
_EVERY = (1, 2)  # which layers have experts
# 0.35 to 0.55 of the peak, as trainings of dense 70B models on A100 and A800 reach.
_EFFICIENCY = Efficiency(gemm=Tagged(0.45, "declared", 1.25), grouped=Tagged(1.0, "declared", 1.02))
_DUPLICATE = LayerSchedule("duplicate", 1, DUPLICATE)
_DROPS = (LayerSchedule("drop", 1, DROP), LayerSchedule("drop_pipelined", 4, DROP))


def model(every: int) -> ModelShape:
    """Return Llama-2-70B's sizes with two experts, one of them for a token, in every so many layers."""
    return ModelShape(
        name="2x70B", source=SOURCE, layers=80, width=8192, heads=64, kv_heads=8, head_dim=128, hidden=28672,
        vocabulary=32000, context=8192, has_experts=tuple(place % every == every - 1 for place in range(80)),
        experts=2, top_k=1, expert_hidden=28672,
    )  # fmt: skip


def cluster(node_gbs: float) -> GpuCluster:
    """Return two nodes of eight A800."""

    def told(value: float, spread: float) -> Tagged:
        return Tagged(value, "declared", spread)

    return GpuCluster(
        nodes=2, gpus_per_node=8, memory_gib=told(80, 1), peak_tflops=told(312, 1), memory_gbs=told(2039, 1),
        links={"intra": LinkCost(gbs=told(180, 1.1), alpha_us=told(10, 1.5)),
               "inter": LinkCost(gbs=told(node_gbs, 1.1), alpha_us=told(10, 1.5))},
    )  # fmt: skip


def strategy(gpus: Sequence[int] = ()) -> PaperFigure:
    """Return how much faster a training step is. gpus: not asked for, the paper has 16."""
    rows = []
    for every in _EVERY:
        for node_gbs in _NODE_GBS:
            there = cluster(node_gbs)
            draws = draw(there, efficiency=_EFFICIENCY)
            settings = Settings.of([
                Setting(tp=8, dp=2, ep=2, etp=8, schedule=schedule, recompute=recompute)
                for recompute in ("none", "redo") for schedule in (_DUPLICATE, *_DROPS)
            ])  # fmt: skip
            us = step_time(model(every), Workload(batch=2), there, settings, draws).us
            for place, schedule in enumerate(_DROPS, 1):
                gain = np.concatenate([us[:, first] / us[:, first + place] for first in (0, 3)])
                layers = "each layer" if every == 1 else "every second layer"
                what = f"{node_gbs} GB/s a node, experts in {layers}: {schedule.label}"
                rows.append(PaperRow(what=what, band=Band.of(gain), published=_PUBLISHED))
    return PaperFigure(
        name="monta", title="MoNTA: 2 x 70B on 16 A800", source=SOURCE,
        ratio="a step in which all send the same tokens, over one that drops them", rows=tuple(rows),
        says=(
            "dropping alone is most of it (DeepSpeed-TED's idea, which current DeepSpeed has); overlap adds 1 to 5 %",
            "with Adam in fp32 the model does not fit into 16 x 80 GB: 125 G parameters take 8 bytes each at most",
        ),
        left_open=("the links of a node", "which layers have experts", "recomputation, and what products reach"),
    )  # fmt: skip
