"""GpuCluster: nodes, GPUs and links, each number with where it is from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from commbench.cost_model.costs import Fitted
from commbench.errors import UsageError
from commbench.strategy.tagged import Tagged

FabricRouting = Literal["static", "adaptive", "unknown"]
ROUTINGS: tuple[FabricRouting, ...] = ("static", "adaptive", "unknown")
_NOTHING = Tagged(0.0, "default")
_FLOP_PER_BYTE = 220.0  # peak FLOP over bytes of memory: 153 (A100), 206 (H200), 281 (B200), 295 (H100)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkCost:
    """What a message takes on one class of link. gbs: GB/s each way, inside a node of a GPU, between nodes of a node.

    Ranks of a node share what is between nodes.
    """

    gbs: Tagged
    alpha_us: Tagged


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCluster:
    """A cluster of equal nodes. Raises `UsageError` for numbers that cannot be.

    memory_gib: of a GPU. peak_tflops: of a GPU, in the type that is trained. memory_gbs: bandwidth of its memory.
    links: `intra`, `inter`; costs: fitted ones (`commbench model`), which take their place.
    routing: of the switches between nodes, and nodes_per_leaf: how many hang on one switch, where nothing collides.
    cores: of all ranks together where ranks share CPUs, as on an emulated cluster; 0: each has its own processor.
    row_us: of a rank's network card, for each row that travels as a message of its own: of `per_rank` and `per_node`
        where a proxy on the CPU posts each token's row (UCCL-EP, NVSHMEM over EFA); 0: rows travel packed, or the GPU
        posts them.
    measured_gpus: the most GPUs that what is measured is from; 0: nothing was measured.
    """

    nodes: int
    gpus_per_node: int
    memory_gib: Tagged
    peak_tflops: Tagged
    memory_gbs: Tagged
    links: dict[str, LinkCost] = field(default_factory=dict)
    costs: Fitted | None = None
    routing: FabricRouting = "unknown"
    nodes_per_leaf: int = 8
    cores: int = 0
    row_us: Tagged = _NOTHING
    measured_gpus: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "nodes_per_leaf"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} is 1 or more")
        if self.costs is None:
            for link, needed in (("intra", self.gpus_per_node > 1), ("inter", self.nodes > 1)):
                if needed and link not in self.links:
                    raise UsageError(
                        f"the cluster has no number for its links {'inside nodes' if link == 'intra' else link}",
                        hint=f"{link}: {{gbs: .., alpha_us: ..}} among links of cluster=FILE, or {link}_gbs=..",
                    )

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def crowd(self) -> float:
        """Ranks that share a processor: 1 where each has its own."""
        return max(1.0, self.gpus / self.cores) if self.cores else 1.0


def default_memory_gbs(peak_tflops: float) -> Tagged:
    """Return the usual bandwidth of memory beside such a peak, in GB/s."""
    return Tagged(peak_tflops * 1e3 / _FLOP_PER_BYTE, "default")
