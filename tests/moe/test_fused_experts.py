"""The graph of fused experts on a CPU: the references stand in the place of their kernels."""

from __future__ import annotations

import pytest
import torch
from commbench_kernels import activations, grouped, rows

from moe_ref import FFN, fused, fused_experts
from tests.moe.fused_experts import COUNTS, check, makes, results


@pytest.fixture(autouse=True)
def references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "unsupported", lambda _: "")
    monkeypatch.setattr(rows, "segment_sum", rows.segment_sum_reference)
    for module, names in (
        (activations, ("biased", "biased_backward", "silu_mul", "silu_mul_backward")),
        (grouped, ("grouped_mm", "grouped_mm_by_weight")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, f"{name}_reference"))


@pytest.mark.parametrize("experts", list(makes(3, 16, 24)), ids=repr)
@pytest.mark.parametrize("on_host", [True, False])
def test_sorted_rows(experts: torch.nn.Module, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fp64, one expert after the other, and of fp32 by grouped products."""
    if not on_host:
        monkeypatch.setattr(fused_experts, "rows_of", lambda x, counts: fused_experts.SortedRows(counts))
    for counts in COUNTS:
        x = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        dtype = torch.float64 if on_host else torch.float32
        check(experts.to(dtype), x.to(dtype), torch.tensor(counts), 1e-12 if on_host else 1e-6)


@pytest.mark.parametrize("experts", list(makes(3, 16, 24)), ids=repr)
@pytest.mark.parametrize("length", [0, 5, 1030])
def test_equal_blocks(experts: torch.nn.Module, length: int) -> None:
    """Batched, and where each has many rows one after the other."""
    x = torch.randn(3, length, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    check(experts.double(), x, None, 1e-12)


def test_autocast_and_gradients_that_nobody_wants() -> None:
    experts = FFN(2, 16, 24, activation="relu", generator=torch.Generator().manual_seed(0))
    experts.b1_EH.requires_grad_(False)
    x = torch.randn(2, 7, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y = experts(x)
    assert y.dtype == torch.bfloat16
    y.backward(torch.full_like(y, 37))
    assert experts.b1_EH.grad is None and experts.w1_EDH.grad.dtype == torch.float32
    assert x.grad is None and float(experts.b2_ED.grad.min()) == 7 * 37, "no sum of bf16, which would be 260"
    assert fused_experts.unsupported(x, experts.w1_EDH.bfloat16()), "two dtypes"
    for counts in (None, torch.tensor([3, 4])):
        experts.requires_grad_(True)
        given = x if counts is None else x[0]
        assert len(results(experts, given, counts)) == 6
