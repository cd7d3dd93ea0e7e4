"""Workload: what is trained in a step, in which types, and what a parameter takes of memory."""

from __future__ import annotations

from dataclasses import dataclass

from commbench.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A step of `batch` sequences. Raises `UsageError` for sizes that cannot be.

    itemsize: bytes of an element of activations, as they are computed and sent.
    weight_bytes, grad_bytes: of each parameter, on every rank that has it. optimizer_bytes: of master weights and
        moments, which ZeRO-1 spreads. Mixed precision of Megatron: 2 + 4 + 12; fp32 with Adam: 4 + 4 + 8.
    residual_bytes: of an element of the residual stream, which is what a layer that is recomputed keeps.
    all_reduces: whether gradients are all-reduced though the optimizer's state is spread, as torch's
        ZeroRedundancyOptimizer has it; else they are reduce-scattered.
    whole_embedding: whether embedding and head are whole on tensor-parallel ranks, as ours are; else they are cut.
    lean_drop: whether ranks that drop what others send too gather the tokens of other groups alone, and get the
        summands of their part alone, as ours do; DeepSpeed gathers all, and all-reduces.
    """

    batch: int
    itemsize: int = 2
    weight_bytes: float = 2
    grad_bytes: float = 4
    optimizer_bytes: float = 12
    residual_bytes: int = 2
    all_reduces: bool = False
    whole_embedding: bool = False
    lean_drop: bool = False

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}", hint="sequences of a step, 1 or more")
        if min(self.weight_bytes, self.grad_bytes) <= 0 or self.optimizer_bytes < 0:
            raise UsageError(f"a parameter takes {self.weight_bytes:g} + {self.grad_bytes:g} + "
                             f"{self.optimizer_bytes:g} bytes", hint="weights and gradients take some")  # fmt: skip

    @property
    def state_bytes(self) -> float:
        """Bytes of a parameter without ZeRO."""
        return self.weight_bytes + self.grad_bytes + self.optimizer_bytes


MIXED = {"itemsize": 2, "weight_bytes": 2.0, "grad_bytes": 4.0, "optimizer_bytes": 12.0, "residual_bytes": 2}
FP32_STATES = {"weight_bytes": 4.0, "grad_bytes": 4.0, "optimizer_bytes": 8.0, "residual_bytes": 4,
               "all_reduces": True, "whole_embedding": True, "lean_drop": True}  # fmt: skip
