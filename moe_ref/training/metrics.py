"""The numbers that a step reports, and where they come from."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from moe_ref.routing import Routing

# Dense products, without sparsity, FLOP/s in bf16 and in fp32, as NVIDIA's data sheets say. The longer names first.
_PEAKS = {
    "H200 NVL": (835e12, 60e12),
    "H200": (989e12, 67e12),
    "H100 NVL": (835e12, 60e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "B200": (2250e12, 80e12),
    "L40S": (362e12, 91.6e12),
}


@dataclass(slots=True, kw_only=True)
class Metrics:
    """One line of metrics.jsonl. docs/guide/training.md says what each means; None is what was not measured."""

    step: int
    loss: float
    val_bits_per_byte: float | None
    tokens_per_s: float
    mfu: float | None
    a2a_us: float
    a2a_calls: int
    a2a_bytes: int
    exposed_comm_us: float
    exposed_comm_min_us: float
    exposed_moe_us: float
    drop_rate: float | None
    expert_balance: float | None
    memory_bytes: int
    profiled: bool = False

    def to_json(self) -> str:
        """Return the line."""
        return json.dumps(asdict(self))


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Return the peak of one GPU of this model for these products; None where it is not known, as on CPUs."""
    if device.type != "cuda" or dtype == "fp64":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[dtype != "bf16"] for model, peaks in _PEAKS.items() if model in name), None)


def memory_bytes(device: torch.device) -> int:
    """Return the most memory that this rank has had: of the GPU as torch's allocator counts it, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class ExpertLoads:
    """Counts in the expert layers of one step: choices for each expert before dropping, and how many were dropped."""

    def __init__(self, layers: int, experts: int, device: torch.device) -> None:
        self._loads_LE = torch.zeros(layers, experts, dtype=torch.int64, device=device)
        self._dropped = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, routings: Sequence[Routing]) -> None:
        """Count the routings of all expert layers in one pass."""
        for layer, routing in enumerate(routings):
            self._loads_LE[layer] += routing.loads_E
            self._dropped += routing.dropped

    def numbers(self) -> Tensor:
        """Return what ranks add up, fp64 [1 + layers x experts]: dropped, then loads."""
        return torch.cat([self._dropped.view(1), self._loads_LE.flatten()]).double()

    def read(self, summed: Tensor) -> tuple[float | None, float | None]:
        """Return the share of dropped choices, and the mean over layers of the largest load over the mean load."""
        loads_LE = summed[1:].view(self._loads_LE.shape)
        total = float(loads_LE.sum())
        if not total:
            return None, None
        balance = loads_LE.amax(1) / loads_LE.mean(1).clamp(min=1e-300)
        return float(summed[0]) / total, float(balance.mean())
