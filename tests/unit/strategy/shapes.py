"""Models, clusters and workloads that tests of the planner share: those that somebody measured."""

from __future__ import annotations

from commbench.strategy.cluster import GpuCluster, LinkCost
from commbench.strategy.model_shape import ModelShape
from commbench.strategy.papers import simumax
from commbench.strategy.tagged import Tagged
from commbench.strategy.workload import FP32_STATES, MIXED, Workload


def deepseek(version: int) -> ModelShape:
    """Return the four layers of DeepSeek-V2 or V3, one of them dense, that SimuMax measured on B200."""
    return simumax.model(version)


def table1(layers: int) -> ModelShape:
    """Return the model of `table1-scaled` with so many layers."""
    return ModelShape(
        name="table1", source="recipe", layers=layers, width=4096, heads=32, kv_heads=32, head_dim=128, hidden=16384,
        expert_hidden=16384, vocabulary=256, context=1024, has_experts=tuple(layer % 2 == 1 for layer in range(layers)),
        experts=4, top_k=2, gated=False, tied=True, capacity_factor=1.0,
    )  # fmt: skip


def mixed(batch: int) -> Workload:
    return Workload(batch=batch, **MIXED)


def fp32_states(batch: int) -> Workload:
    return Workload(batch=batch, itemsize=2, **FP32_STATES)


def cluster(
    nodes: int, gpus_per_node: int = 8, *, intra: float = 450.0, inter: float = 400.0, alpha: float = 5.0,
    memory_gib: float = 80.0, routing: str = "adaptive",
) -> GpuCluster:  # fmt: skip
    """Return a cluster of declared H100s, GB/s of a GPU inside nodes and of a node between them."""
    links = {"intra": LinkCost(gbs=Tagged(intra, "declared"), alpha_us=Tagged(alpha, "declared")),
             "inter": LinkCost(gbs=Tagged(inter, "declared"), alpha_us=Tagged(2 * alpha, "declared"))}  # fmt: skip
    return GpuCluster(
        nodes=nodes, gpus_per_node=gpus_per_node, memory_gib=Tagged(memory_gib, "declared", 1.0),
        peak_tflops=Tagged(989.0, "declared", 1.0), memory_gbs=Tagged(3350.0, "declared"), links=links,
        routing=routing,  # type: ignore[arg-type]
    )  # fmt: skip
