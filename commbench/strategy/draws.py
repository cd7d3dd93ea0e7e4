"""Draws: what nobody knows exactly, drawn many times. All settings meet the same draws, so their order is surer than
their times are. docs/reference/planner.md has each one's source."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from commbench.stats import Floats
from commbench.strategy.cluster import GpuCluster
from commbench.strategy.tagged import Tagged

DRAWS = 300
STEPS_IN_FLIGHT = (8.0, 32.0)  # of a statically routed fabric: exchanges between which flows shift


class Efficiency(NamedTuple):
    """What processors reach, with how sure that is.

    gemm: large matrix products, by the peak; grouped: those of experts, by `gemm`; attention: scores, by the peak.
    half_rows: rows (and columns) at which a product reaches half of that. memory: of the bandwidth of memory, by
    many small kernels; stream: by products that read large weights.
    launch_us: of the host, for each kernel; step_us: of the host, for each step.
    beside: how much slower products are beside exchanges. grad_overlap: of the backward pass, beside which gradients
    are reduced, from and to. missed: of a whole step, what no formula has.
    """

    gemm: Tagged = Tagged(0.6, "default", 1.25)
    grouped: Tagged = Tagged(0.85, "default", 1.25)
    attention: Tagged = Tagged(0.5, "default", 1.3)
    half_rows: Tagged = Tagged(128.0, "default", 1.5)
    memory: Tagged = Tagged(0.7, "default", 1.25)
    stream: Tagged = Tagged(0.95, "default", 1.1)
    launch_us: Tagged = Tagged(5.0, "default", 1.5)
    step_us: Tagged = Tagged(0.0, "default", 1.5)
    beside: Tagged = Tagged(1.1, "default", 1.1)
    grad_overlap: tuple[float, float] = (0.3, 0.9)
    missed: Tagged = Tagged(1.0, "default", 1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Numbers of each draw, [d] each; the first is the middle: every number at its own value.

    flop_us: FLOP of a large product in a microsecond; grouped: of experts' products over these; attention: FLOP of
    scores. memory_us, stream_us: bytes of memory in a microsecond, of all and of weights. uneven: tokens of the most
    loaded expert over their mean. in_flight, adaptive: of exchanges that collide beyond a leaf (`links.contention`):
    how many steps are in flight, and 1 where routing is adaptive, 0 where it is static. row_us: of a row that is a
    message of its own. alpha, beta: of each class of
    declared links, microseconds, and microseconds for a KiB.
    """

    flop_us: Floats
    grouped: Floats
    attention: Floats
    half_rows: Floats
    memory_us: Floats
    stream_us: Floats
    launch_us: Floats
    step_us: Floats
    beside: Floats
    grad_overlap: Floats
    missed: Floats
    uneven: Floats
    in_flight: Floats
    adaptive: Floats
    row_us: Floats
    alpha: dict[str, Floats] = field(default_factory=dict)
    beta: dict[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.flop_us)


def draw(
    cluster: GpuCluster,
    *,
    efficiency: Efficiency | None = None,
    uneven: Tagged | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Draws:
    """Draw a cluster's numbers. The first of `draws` is the middle.

    uneven: tokens of the most loaded expert over their mean; None: 1, they are even.
    """
    rng, of = np.random.default_rng(seed), efficiency or Efficiency()

    def normal() -> Floats:
        values: Floats = rng.standard_normal(draws)
        values[0] = 0.0
        return values

    def uniform() -> Floats:
        values: Floats = rng.uniform(size=draws)
        values[0] = 0.5
        return values

    flop_us = cluster.peak_tflops.drawn(normal()) * 1e6
    gemm = np.minimum(of.gemm.drawn(normal()), 0.95)
    bandwidth = cluster.memory_gbs.drawn(normal()) * 1e3
    low, high = of.grad_overlap
    first, last = STEPS_IN_FLIGHT
    share = uniform()
    if cluster.routing != "unknown":
        share = np.full(draws, 1.0 if cluster.routing == "adaptive" else 0.0)
    links = {name: (cost.alpha_us, cost.gbs) for name, cost in cluster.links.items()}
    return Draws(
        flop_us=flop_us * gemm,
        grouped=np.minimum(of.grouped.drawn(normal()), 1.0),
        attention=flop_us * np.minimum(of.attention.drawn(normal()), 0.95),
        half_rows=of.half_rows.drawn(normal()),
        memory_us=bandwidth * np.minimum(of.memory.drawn(normal()), 1.0),
        stream_us=bandwidth * np.minimum(of.stream.drawn(normal()), 1.0),
        launch_us=of.launch_us.drawn(normal()),
        step_us=of.step_us.drawn(np.zeros(draws)),
        beside=np.maximum(of.beside.drawn(normal()), 1.0),
        grad_overlap=low + (high - low) * uniform(),
        missed=of.missed.drawn(normal()),
        uneven=np.ones(draws) if uneven is None else 1 + Tagged(max(uneven.value - 1, 0.0), uneven.source,
                                                               uneven.spread).drawn(normal()),
        in_flight=np.exp(math.log(first) + math.log(last / first) * uniform()),
        adaptive=share,
        row_us=cluster.row_us.drawn(normal()) if cluster.row_us.value else np.zeros(draws),
        alpha={name: alpha.drawn(normal()) for name, (alpha, _) in links.items()},
        beta={name: 1.024 / gbs.drawn(normal()) for name, (_, gbs) in links.items()},
    )  # fmt: skip
