"""SimuMax's measurements of Megatron on eight B200: DeepSeek-V2 and V3 of four layers, by the planner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from commbench.stats import Floats
from commbench.strategy.cluster import GpuCluster, LinkCost
from commbench.strategy.draws import draw
from commbench.strategy.known import GPUS
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.papers.figure import Band, PaperFigure, PaperRow
from commbench.strategy.setting import Setting, Settings
from commbench.strategy.step_time import step_time
from commbench.strategy.tagged import Tagged
from commbench.strategy.workload import Workload

SOURCE = "https://github.com/MooreThreads/SimuMax"
_EP8, _EP4_PP2 = Setting(dp=8, ep=8), Setting(dp=4, pp=2, ep=4)
# Version of DeepSeek, strategy, its name, sequences of a step, milliseconds that were measured.
_CELLS = (
    (2, _EP8, "ep 8", 32, 366.6),
    (2, _EP4_PP2, "ep 4 pp 2", 32, 492.6),
    (2, _EP8, "ep 8", 64, 676.2),
    (3, _EP8, "ep 8", 32, 603.2),
    (3, _EP4_PP2, "ep 4 pp 2", 32, 771.6),
    (3, _EP8, "ep 8", 64, 1101.7),
)
_RATIOS = ((0, 1), (3, 4))


def model(version: int) -> ModelShape:
    """Return DeepSeek-V2 or V3 with four layers, one of them dense; slots are fixed, so that experts are even."""
    two = version == 2
    return ModelShape(
        name=f"DeepSeek-V{version}", source=SOURCE, layers=4, width=5120 if two else 7168, heads=128, kv_heads=128,
        head_dim=128, value_dim=128, rope_dim=64, q_lora=1536, kv_lora=512, hidden=12288 if two else 18432,
        expert_hidden=1536 if two else 2048, shared_hidden=3072 if two else 2048, experts=160 if two else 256,
        top_k=6 if two else 8, vocabulary=102400 if two else 129280, context=4096,
        has_experts=(False, True, True, True), capacity_factor=1.0,
    )  # fmt: skip


def cluster() -> GpuCluster:
    """Return eight B200: data sheets, and what SimuMax measured of all-to-all over NVLink, 0.597 of 900 GB/s."""
    card = GPUS["b200"]
    return GpuCluster(
        nodes=1, gpus_per_node=8, memory_gib=Tagged(card.memory_gb, "declared", 1.0),
        peak_tflops=Tagged(card.peak_tflops, "declared", 1.0), memory_gbs=Tagged(card.memory_gbs, "declared", 1.1),
        links={"intra": LinkCost(gbs=Tagged(537.0, "measured"), alpha_us=Tagged(7.3, "measured"))},
    )  # fmt: skip


def cells(gpus: Sequence[int] = ()) -> PaperFigure:
    """Return predicted over measured times, and two ratios of strategies. gpus: not asked for, it has 8."""
    there = cluster()
    draws = draw(there, efficiency=GPUS["b200"].efficiency._replace(grad_overlap=(0.0, 0.0)))  # nothing overlaps there
    predicted: list[Floats] = []
    rows = []
    for version, setting, name, batch, measured_ms in _CELLS:
        us = step_time(model(version), Workload(batch=batch), there, Settings.of([setting]), draws).us[:, 0]
        predicted.append(us)
        what = f"V{version}, {name}, {batch} sequences: over {measured_ms:g} ms"
        rows.append(PaperRow(what=what, band=Band.of(us / 1e3 / measured_ms), published=1.0))
    for first, second in _RATIOS:
        version = _CELLS[first][0]
        ratio = np.asarray(predicted[second] / predicted[first])
        published = _CELLS[second][4] / _CELLS[first][4]
        rows.append(PaperRow(what=f"V{version}: ep 4 pp 2 over ep 8", band=Band.of(ratio), published=published))
    return PaperFigure(
        name="simumax", title="SimuMax: Megatron on 8 B200", source=SOURCE, rows=tuple(rows),
        ratio="predicted time over measured, and of two strategies",
        says=(
            "with what SimuMax measured of products, memory and NVLink; it has each operation's own number itself, "
            "and its errors on these steps are -14 % to +0.1 %, its ratios of strategies 1.32 and 1.34",
        ),
        left_open=("how far each of its operations is from their mean",),
    )  # fmt: skip
